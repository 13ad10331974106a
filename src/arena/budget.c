/* How much memory this process may take: the machine's, and what its cgroups leave.
 *
 * It is asked before memory is allocated, because a full cgroup does not fail an allocation: the
 * kernel kills a process of the group. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The file's text, cut at `nbytes`; 0 when it cannot be read. */
static int zf_read_text(const char *path, char *text, size_t nbytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  size_t length = 0;
  ssize_t got;
  while (length < nbytes - 1 && (got = read(fd, text + length, nbytes - 1 - length)) > 0)
    length += (size_t)got;
  close(fd);
  text[length] = 0;
  return length > 0;
}

/* The number after `name` at the start of a line. */
static int zf_field(const char *text, const char *name, uint64_t *value) {
  size_t length = strlen(name);
  for (const char *line = text; line; line = strchr(line, '\n')) {
    if (*line == '\n') line++;
    if (strncmp(line, name, length) == 0 && (line[length] == ' ' || line[length] == ':')) {
      *value = strtoull(line + length + 1, NULL, 10);
      return 1;
    }
  }
  return 0;
}

/* A file of one number; "max" is none. */
static int zf_number(const char *folder, const char *name, uint64_t *value) {
  char path[4352], text[64];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  if (!zf_read_text(path, text, sizeof text) || text[0] < '0' || text[0] > '9') return 0;
  *value = strtoull(text, NULL, 10);
  return 1;
}

typedef struct {
  const char *limits[2], *usage, *reclaimable;
} zf_cgroup_names;

static const zf_cgroup_names zf_cgroup_v2 = {
    {"memory.max", "memory.high"}, "memory.current", "inactive_file"};
static const zf_cgroup_names zf_cgroup_v1 = {
    {"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes", "total_inactive_file"};

static void zf_cgroup_apply(const char *folder, const zf_cgroup_names *names, zf_memory *memory) {
  uint64_t limit = UINT64_MAX, one, used, reclaimable;
  for (int i = 0; i < 2; i++)
    if (names->limits[i] && zf_number(folder, names->limits[i], &one) && one < limit) limit = one;
  if (limit == UINT64_MAX || !zf_number(folder, names->usage, &used)) return;
  char path[4352], text[16384];
  snprintf(path, sizeof path, "%s/memory.stat", folder);
  /* Pages of files that nobody uses go before anything is killed. */
  if (zf_read_text(path, text, sizeof text) && zf_field(text, names->reclaimable, &reclaimable))
    used = used > reclaimable ? used - reclaimable : 0;
  uint64_t left = limit > used ? limit - used : 0;
  if (limit < memory->total_nbytes) memory->total_nbytes = limit;
  if (left < memory->available_nbytes) memory->available_nbytes = left;
}

/* The group and all that it lies in. In a container the path may be the host's, and only the
 * mount's root be there: folders that do not exist are passed over. */
static void zf_cgroup_walk(const char *mount, const char *group, const zf_cgroup_names *names,
                           zf_memory *memory) {
  char folder[4096];
  int length = snprintf(folder, sizeof folder, "%s%s", mount, group);
  if (length < 0 || length >= (int)sizeof folder) return;
  size_t root = strlen(mount);
  for (;;) {
    zf_cgroup_apply(folder, names, memory);
    char *slash = strrchr(folder, '/');
    if (!slash || (size_t)(slash - folder) < root) return;
    *slash = 0;
  }
}

void zf_memory_read(const char *proc, const char *cgroup, zf_memory *out) {
  char path[4096], text[16384];
  out->total_nbytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
  out->available_nbytes = UINT64_MAX;
  uint64_t kib;
  snprintf(path, sizeof path, "%s/meminfo", proc);
  if (zf_read_text(path, text, sizeof text)) {
    if (zf_field(text, "MemTotal", &kib)) out->total_nbytes = kib * 1024;
    if (zf_field(text, "MemAvailable", &kib)) out->available_nbytes = kib * 1024;
  }
  snprintf(path, sizeof path, "%s/self/cgroup", proc);
  if (!zf_read_text(path, text, sizeof text)) return;
  char *rest = NULL;
  for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : 0;
    if (!group) continue;
    *group++ = 0;
    controllers++;
    char mount[4096];
    if (!*controllers) {
      zf_cgroup_walk(cgroup, group, &zf_cgroup_v2, out);
      snprintf(mount, sizeof mount, "%s/unified", cgroup);
      zf_cgroup_walk(mount, group, &zf_cgroup_v2, out);
    } else if (strcmp(controllers, "memory") == 0) {
      snprintf(mount, sizeof mount, "%s/memory", cgroup);
      zf_cgroup_walk(mount, group, &zf_cgroup_v1, out);
    }
  }
}
