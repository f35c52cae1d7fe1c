/* Which processors this process may use, read once from the system's own files. */
#ifndef HGCA_PROCESSORS_H
#define HGCA_PROCESSORS_H

#include <limits.h>
#include <stdint.h>

enum { HGCA_MOST_PROCESSORS = 8192, HGCA_MOST_NODES = 64 }; /* Linux builds for no more processors */

enum { HGCA_WORD_BITS = sizeof(unsigned long) * CHAR_BIT };

/* As the kernel lays out a processor mask. */
typedef struct {
    unsigned long word[HGCA_MOST_PROCESSORS / HGCA_WORD_BITS];
} hgca_processor_set;

typedef struct {
    int32_t processors; /* of the affinity mask; two of one core count twice; at least 1 */
    int32_t cores;      /* physical cores with a processor in the mask; at least 1 */
    int64_t quota;      /* thousandths of a processor that the cgroups grant; INT64_MAX: no limit */
} hgca_machine;

/* `root` stands before "/proc" and "/sys"; with one, the mask is read from <root>/proc/self/status too. "": the
 * system's own. What cannot be read does not limit. */
void hgca_machine_read(const char *root, hgca_machine *machine);

/* The NUMA nodes with processors of the mask: sets[i] are those, cores[i] their physical cores. Returns how many. */
int32_t hgca_machine_nodes(const char *root, hgca_processor_set sets[HGCA_MOST_NODES], int32_t cores[HGCA_MOST_NODES]);

/* One thread per physical core, no more than the quota rounded up. */
int32_t hgca_machine_threads(const hgca_machine *machine);

#endif
