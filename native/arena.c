/* Address space first, memory later. */
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hgca.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

static int64_t page(void) { return (int64_t)sysconf(_SC_PAGESIZE); }

static int64_t up(int64_t bytes) { return (bytes + page() - 1) / page() * page(); }

int hgca_reserve(int64_t bytes, void **base) {
    if (bytes < 0 || bytes > INT64_MAX - page() || base == NULL) return HGCA_BAD_ARGUMENT;
    void *memory =
        mmap(NULL, (size_t)up(bytes ? bytes : 1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return HGCA_NO_MEMORY;
    *base = memory;
    return HGCA_OK;
}

int hgca_commit(void *base, int64_t offset, int64_t bytes) {
    if (base == NULL || offset < 0 || bytes < 0 || offset > INT64_MAX - bytes - page()) return HGCA_BAD_ARGUMENT;
    int64_t first = offset / page() * page(), size = up(offset + bytes) - first;
    if (size == 0) return HGCA_OK;
    char *start = (char *)base + first;
    if (mprotect(start, (size_t)size, PROT_READ | PROT_WRITE) != 0) return HGCA_NO_MEMORY;
#ifdef MADV_HUGEPAGE
    if (size >= 4 << 20) madvise(start, (size_t)size, MADV_HUGEPAGE); /* a wish: what it answers does not matter */
#endif
    return HGCA_OK;
}

int hgca_release(void *base, int64_t bytes) {
    if (base == NULL || bytes < 0) return HGCA_BAD_ARGUMENT;
    return munmap(base, (size_t)up(bytes ? bytes : 1)) == 0 ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

const char *hgca_status_text(int status) {
    switch (status) {
    case HGCA_OK: return "ok";
    case HGCA_BAD_ARGUMENT: return "an argument is out of range";
    case HGCA_NO_MEMORY: return "no memory";
    case HGCA_NO_ISA: return "this machine does not have that instruction set";
    case HGCA_FORKED: return "these jobs were started before fork() and belong to the parent process";
    }
    return "unknown status";
}
