/* The affinity mask, SMT siblings, NUMA nodes and cgroup quotas. Files that are missing or that say something else than
 * Linux does are taken for no limit: a wrong guess costs speed, never an answer. */
#define _GNU_SOURCE
#include "processors.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hgca.h"

enum { LONGEST_PATH = 4096, LONGEST_LIST = 16384 };

static int has(const hgca_processor_set *set, int32_t i) {
    return (int)(set->word[i / HGCA_WORD_BITS] >> i % HGCA_WORD_BITS & 1);
}

static void add(hgca_processor_set *set, int32_t i) { set->word[i / HGCA_WORD_BITS] |= 1ul << i % HGCA_WORD_BITS; }

static int32_t count(const hgca_processor_set *set) {
    int32_t sum = 0;
    for (int32_t i = 0; i < HGCA_MOST_PROCESSORS; i++) sum += has(set, i);
    return sum;
}

/* "0-3,8,10-11\n". Stops at what is no list; 0 if nothing was one. */
static int parse_list(const char *text, hgca_processor_set *set) {
    memset(set, 0, sizeof *set);
    int any = 0;
    for (;;) {
        char *end;
        long from = strtol(text, &end, 10), to = from;
        if (end == text) return any;
        if (*end == '-') {
            text = end + 1;
            to = strtol(text, &end, 10);
            if (end == text) return any;
        }
        for (long i = from < 0 ? 0 : from; i <= to && i < HGCA_MOST_PROCESSORS; i++) add(set, (int32_t)i), any = 1;
        if (*end != ',') return any;
        text = end + 1;
    }
}

static FILE *open_file(const char *root, const char *path) {
    char whole[2 * LONGEST_PATH];
    int length = snprintf(whole, sizeof whole, "%s%s", root, path);
    return length > 0 && length < (int)sizeof whole ? fopen(whole, "re") : NULL;
}

/* The file's first line. */
static int read_line(const char *root, const char *path, char *line, int size) {
    FILE *file = open_file(root, path);
    if (file == NULL) return 0;
    int got = fgets(line, size, file) != NULL;
    fclose(file);
    return got;
}

static int read_list(const char *root, const char *path, hgca_processor_set *set) {
    char line[LONGEST_LIST];
    return read_line(root, path, line, sizeof line) && parse_list(line, set);
}

static int read_mask(const char *root, hgca_processor_set *set) {
#if defined(__linux__)
    if (root[0] == '\0') { /* not the file: sandboxes leave it out */
        memset(set, 0, sizeof *set);
        return sched_getaffinity(0, sizeof *set, (cpu_set_t *)set) == 0 && count(set) > 0;
    }
#endif
    FILE *file = open_file(root, "/proc/self/status");
    if (file == NULL) return 0;
    char line[LONGEST_LIST];
    const char name[] = "Cpus_allowed_list:";
    int found = 0;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = strncmp(line, name, sizeof name - 1) == 0 && parse_list(line + sizeof name - 1, set);
    fclose(file);
    return found;
}

/* Cores with a processor in the set: a core is counted at the first of its siblings that the set has. */
static int32_t count_cores(const char *root, const hgca_processor_set *set) {
    int32_t cores = 0;
    for (int32_t i = 0; i < HGCA_MOST_PROCESSORS; i++) {
        if (!has(set, i)) continue;
        char path[96];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%" PRId32 "/topology/thread_siblings_list", i);
        hgca_processor_set siblings;
        int is_first = 1;
        if (read_list(root, path, &siblings))
            for (int32_t j = 0; j < i && is_first; j++) is_first = !(has(&siblings, j) && has(set, j));
        cores += is_first;
    }
    return cores;
}

static int64_t thousandths(int64_t quota, int64_t period) {
    if (quota <= 0 || period <= 0) return INT64_MAX; /* -1: no limit */
    return quota > INT64_MAX / 1000 ? INT64_MAX : (quota * 1000 + period - 1) / period;
}

static int64_t quota_of(const char *root, const char *group) { /* a cgroup's own, not its parents' */
    char path[LONGEST_PATH + 32], line[96];
    int64_t quota, period, least = INT64_MAX;
    snprintf(path, sizeof path, "%s/cpu.max", group);
    if (read_line(root, path, line, sizeof line) && sscanf(line, "%" SCNd64 " %" SCNd64, &quota, &period) == 2)
        least = thousandths(quota, period); /* "max 100000" is no number */
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", group);
    if (read_line(root, path, line, sizeof line) && sscanf(line, "%" SCNd64, &quota) == 1) {
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", group);
        if (read_line(root, path, line, sizeof line) && sscanf(line, "%" SCNd64, &period) == 1) {
            int64_t here = thousandths(quota, period);
            if (here < least) least = here;
        }
    }
    return least;
}

/* The least quota from a cgroup up to the root of its tree. A container sees a part of the tree under the name of the
 * whole: levels that are not there are passed over, the mount's own is always asked. */
static int64_t quota_up(const char *root, const char *mount, const char *group) {
    char path[LONGEST_PATH];
    size_t top = strlen(mount);
    int length = snprintf(path, sizeof path, "%s%s", mount, group);
    if (length < 0 || length >= (int)sizeof path) return INT64_MAX;
    int64_t least = INT64_MAX;
    for (;;) {
        int64_t here = quota_of(root, path);
        if (here < least) least = here;
        char *slash = strrchr(path + top, '/');
        if (slash == NULL) return least;
        *slash = '\0';
    }
}

static int names_cpu(const char *controllers) { /* "cpu,cpuacct" does, "cpuset" does not */
    for (const char *at = controllers; *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == 3 && strncmp(at, "cpu", 3) == 0) return 1;
    return 0;
}

/* /proc/self/cgroup: "0::/a/b" for the one tree of version 2, "4:cpu,cpuacct:/a/b" for a tree of version 1. */
static int64_t read_quota(const char *root) {
    static const char *const mounts[2][2] = {{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"},
                                             {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}};
    int64_t least = INT64_MAX;
    char line[LONGEST_PATH];
    FILE *file = open_file(root, "/proc/self/cgroup");
    if (file == NULL) return least;
    while (fgets(line, sizeof line, file) != NULL) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) continue;
        *controllers++ = *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        int unified = controllers[0] == '\0';
        if (!unified && !names_cpu(controllers)) continue;
        for (int i = 0; i < 2; i++) {
            int64_t here = quota_up(root, mounts[unified][i], group);
            if (here < least) least = here;
        }
    }
    fclose(file);
    return least;
}

void hgca_machine_read(const char *root, hgca_machine *machine) {
    hgca_processor_set mask;
    if (read_mask(root, &mask)) {
        machine->processors = count(&mask);
        machine->cores = count_cores(root, &mask);
    } else {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        machine->processors = machine->cores = online < 1 ? 1 : (int32_t)online;
    }
    machine->quota = read_quota(root);
}

int32_t hgca_machine_nodes(const char *root, hgca_processor_set sets[HGCA_MOST_NODES], int32_t cores[HGCA_MOST_NODES]) {
    hgca_processor_set mask;
    if (!read_mask(root, &mask)) return 0;
    int32_t nodes = 0;
    for (int32_t i = 0; i < HGCA_MOST_NODES; i++) {
        char path[96];
        snprintf(path, sizeof path, "/sys/devices/system/node/node%" PRId32 "/cpulist", i);
        if (!read_list(root, path, &sets[nodes])) continue; /* numbers have gaps, and some nodes are memory alone */
        for (size_t k = 0; k < sizeof mask.word / sizeof mask.word[0]; k++) sets[nodes].word[k] &= mask.word[k];
        cores[nodes] = count_cores(root, &sets[nodes]);
        nodes += cores[nodes] > 0;
    }
    return nodes;
}

int32_t hgca_machine_threads(const hgca_machine *machine) {
    int64_t granted = machine->quota == INT64_MAX ? INT64_MAX : (machine->quota + 999) / 1000;
    return (int32_t)(granted < machine->cores ? granted : machine->cores);
}

int32_t hgca_usable_processors(const char *root) {
    hgca_machine machine;
    hgca_machine_read(root ? root : "", &machine);
    return hgca_machine_threads(&machine);
}
