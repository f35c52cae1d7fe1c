/* Reads made-up /proc and /sys trees: what a machine with SMT, several nodes, masks and quotas would say. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../processors.h"
#include "check_processors.h"
#include "hgca.h"

static int failed;
static char root[64];

static void expect(int64_t got, int64_t wanted, const char *what) {
    if (got == wanted) return;
    failed++;
    fprintf(stderr, "FAILED: processors: %s: %lld, not %lld\n", what, (long long)got, (long long)wanted);
}

static void put(const char *path, const char *text) {
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *at = strchr(whole + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(whole, 0700); /* most are there */
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    if (file == NULL) exit(2);
    fputs(text, file);
    fclose(file);
}

static int new_root(void) {
    snprintf(root, sizeof root, "/tmp/hgca-check-XXXXXX");
    return mkdtemp(root) != NULL;
}

static void drop_root(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (system(command) != 0) exit(2);
}

static hgca_machine machine(void) {
    hgca_machine found;
    hgca_machine_read(root, &found);
    return found;
}

static void check_nodes(void) {
    static hgca_processor_set sets[HGCA_MOST_NODES];
    int32_t cores[HGCA_MOST_NODES];
    expect(hgca_machine_nodes(root, sets, cores), 0, "nodes of nothing");
    put("/proc/self/status", "Name:\tcheck\nCpus_allowed:\tff\nCpus_allowed_list:\t1-2,4-9\n");
    put("/sys/devices/system/node/node0/cpulist", "0-3\n");
    put("/sys/devices/system/node/node1/cpulist", "\n"); /* memory alone */
    put("/sys/devices/system/node/node2/cpulist", "4-7,70\n");
    put("/sys/devices/system/node/node9/cpulist", "10-13\n"); /* not in the mask */
    put("/sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "4,6\n");
    put("/sys/devices/system/cpu/cpu6/topology/thread_siblings_list", "4,6\n");
    expect(hgca_machine_nodes(root, sets, cores), 2, "nodes of the mask");
    expect((int64_t)sets[0].word[0], 0x6, "node 0");
    expect((int64_t)sets[1].word[0], 0xf0, "node 2");
    expect((int64_t)sets[1].word[1], 0, "node 2, not in the mask");
    expect(cores[0], 2, "cores of node 0");
    expect(cores[1], 3, "cores of node 2");
    expect(machine().processors, 8, "processors of the mask");
    expect(machine().cores, 7, "cores of the mask");
}

static void check_quotas(void) {
    expect(machine().quota, INT64_MAX, "no cgroup");
    put("/proc/self/status", "Cpus_allowed_list:\t0-7\n");
    put("/proc/self/cgroup", "4:cpuset:/other\n3:cpu,cpuacct:/a/b\n0::/c/d\n");
    put("/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/unified/c/d/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/cpu/other/cpu.max", "1 100000\n"); /* of no group that we are in */
    expect(machine().quota, INT64_MAX, "groups without a quota");
    put("/sys/fs/cgroup/unified/c/cpu.max", "350000 100000\n");
    expect(machine().quota, 3500, "version 2, above");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "120000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n");
    expect(machine().quota, 2400, "version 1, at the top");
    expect(hgca_usable_processors(root), 3, "rounded up");
    put("/sys/fs/cgroup/unified/c/cpu.max", "1 100000\n");
    expect(hgca_usable_processors(root), 1, "hardly any");
}

static void check_nonsense(void) {
    put("/proc/self/status", "Cpus_allowed_list:\t0-1\n");
    put("/proc/self/cgroup", "nonsense\n0::\n:::\n7:cpu\n");
    put("/sys/fs/cgroup/cpu.max", "99999999999999999999999 0\n");
    put("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "7-2,,x\n");
    put("/sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "");
    put("/sys/devices/system/node/node0/cpulist", "-5,999999-1000001\n");
    expect(hgca_usable_processors(root), 2, "files that say nothing");
    put("/proc/self/status", "Cpus_allowed_list:\t\n");
    expect(hgca_usable_processors(root) >= 1, 1, "an empty mask");
    expect(hgca_usable_processors("") >= 1 && hgca_usable_processors(NULL) >= 1, 1, "this machine");
}

int check_processors(void) {
    void (*const checks[])(void) = {check_nodes, check_quotas, check_nonsense};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (!new_root()) return failed; /* no /tmp to write to */
        checks[i]();
        drop_root();
    }
    return failed;
}
