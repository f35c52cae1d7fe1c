"""What the program is measured with."""
