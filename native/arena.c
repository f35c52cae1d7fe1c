/* Address space first, memory later. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "hgca.h"
#include "hgca_model.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

enum { HUGE_PAGE = 2 << 20 }; /* of x86-64, and of Arm with pages of 4 KiB; elsewhere only an alignment */

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* of Linux 6.1, which older headers do not know */
#endif
#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 /* of Linux 5.14 */
#endif

static int64_t page(void) { return (int64_t)sysconf(_SC_PAGESIZE); }

static int64_t up(int64_t bytes) { return (bytes + page() - 1) / page() * page(); }

int hgca_reserve(int64_t bytes, void **base) {
    if (bytes < 0 || bytes > INT64_MAX - page() || base == NULL) return HGCA_BAD_ARGUMENT;
    int64_t size = up(bytes ? bytes : 1), spare = size >= HUGE_PAGE && size <= INT64_MAX - HUGE_PAGE ? HUGE_PAGE : 0;
    char *memory =
        mmap(NULL, (size_t)(size + spare), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return HGCA_NO_MEMORY;
    if (spare) { /* begin on a huge page, and give the rest back */
        int64_t before = (int64_t)(-(uintptr_t)memory & (HUGE_PAGE - 1));
        if (before) munmap(memory, (size_t)before);
        if (before < spare) munmap(memory + before + size, (size_t)(spare - before));
        memory += before;
    }
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
    if (size >= HUGE_PAGE) madvise(start, (size_t)size, MADV_HUGEPAGE); /* a wish: what it answers does not matter */
#endif
    return HGCA_OK;
}

int hgca_join_pages(void *base, int64_t offset) {
    if (base == NULL || offset < 0 || offset > INT64_MAX - HUGE_PAGE) return HGCA_BAD_ARGUMENT;
    const int status = hgca_commit(base, offset, HUGE_PAGE); /* which asks for huge pages from now on */
#ifdef MADV_COLLAPSE
    if (status == HGCA_OK) madvise((char *)base + offset, HUGE_PAGE, MADV_COLLAPSE);
#endif
    return status;
}

int hgca_reserve_file(int64_t bytes, int file, void **base) {
    int status = hgca_reserve(bytes, base);
    if (status) return status;
    if (mmap(*base, (size_t)up(bytes ? bytes : 1), PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED) return HGCA_OK;
    hgca_release(*base, bytes);
    return HGCA_NO_MEMORY;
}

int hgca_commit_file(void *base, int file, int64_t offset, int64_t bytes) {
    if (base == NULL || offset < 0 || bytes < 0 || offset > INT64_MAX - bytes - page()) return HGCA_BAD_ARGUMENT;
    int64_t first = offset / page() * page(), size = up(offset + bytes) - first;
    if (size == 0) return HGCA_OK;
    int refused = ENOTSUP;
#ifndef __APPLE__ /* which has no such call: no store in a file there */
    do refused = posix_fallocate(file, (off_t)first, (off_t)size);
    while (refused == EINTR);
#endif
    if (refused) return HGCA_NO_SPACE;
    return mprotect((char *)base + first, (size_t)size, PROT_READ | PROT_WRITE) == 0 ? HGCA_OK : HGCA_NO_MEMORY;
}

int hgca_map(void *base, int64_t offset, int64_t bytes, int file, int64_t at) {
    if (base == NULL || offset < 0 || bytes < 0 || at < 0 || offset % page() || bytes % page() || at % page())
        return HGCA_BAD_ARGUMENT;
    if (bytes == 0) return HGCA_OK;
    char *start = (char *)base + offset;
    const int kind = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
    if (mmap(start, (size_t)bytes, PROT_READ | PROT_WRITE, kind, file, (off_t)at) == MAP_FAILED) return HGCA_NO_MEMORY;
#ifdef MADV_COLLAPSE /* wishes, as above: huge pages, of which the first who asks makes the file's, and no faults later */
    if (bytes >= HUGE_PAGE) madvise(start, (size_t)bytes, MADV_COLLAPSE);
#endif
#ifdef MADV_POPULATE_READ
    madvise(start, (size_t)bytes, MADV_POPULATE_READ);
#endif
    return HGCA_OK;
}

int hgca_advise(void *base, int64_t bytes, int32_t in_order) {
    if (base == NULL || bytes < 0) return HGCA_BAD_ARGUMENT;
    posix_madvise(base, (size_t)up(bytes ? bytes : 1), in_order ? POSIX_MADV_SEQUENTIAL : POSIX_MADV_RANDOM);
    return HGCA_OK;
}

int hgca_release(void *base, int64_t bytes) {
    if (base == NULL || bytes < 0) return HGCA_BAD_ARGUMENT;
    return munmap(base, (size_t)up(bytes ? bytes : 1)) == 0 ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

int hgca_forget(uintptr_t at, int64_t bytes) {
    if (at == 0 || bytes < 0) return HGCA_BAD_ARGUMENT;
    const uintptr_t first = (at + (uintptr_t)page() - 1) / (uintptr_t)page() * (uintptr_t)page();
    const uintptr_t end = (at + (uintptr_t)bytes) / (uintptr_t)page() * (uintptr_t)page();
#ifdef MADV_DONTNEED
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED); /* a wish: what it answers does not matter */
#endif
    return HGCA_OK;
}

void hgca_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

const char *hgca_status_text(int status) {
    switch (status) {
    case HGCA_OK: return "ok";
    case HGCA_BAD_ARGUMENT: return "an argument is out of range";
    case HGCA_NO_MEMORY: return "no memory";
    case HGCA_NO_OPENMP: return "this process has no GNU OpenMP";
    case HGCA_NO_ISA: return "this machine does not have that instruction set";
    case HGCA_NO_SPACE: return "the file system has no room";
    case HGCA_NO_ANSWER: return "the device did not come to ask";
    case HGCA_FORKED: return "these jobs were started before fork() and belong to the parent process";
    }
    return "unknown status";
}
