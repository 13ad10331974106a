/* Where a segment's memory comes from: a memfd, else an unlinked file.
 *
 * Space is allocated before it is mapped, so that a full machine is an error here and never a
 * SIGBUS later; then it is faulted in, because page faults cost more than the copies do. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/memfd.h>
#include <sys/syscall.h>
#endif

#ifdef F_ADD_SEALS
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#define ZF_SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* `*reader` is a second, read-only descriptor of the same file, or -1. */
static int zf_open_memfd(int *reader) {
#ifdef SYS_memfd_create
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  int fd = (int)syscall(SYS_memfd_create, "zfast-arena", flags | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) /* Linux before 6.3 */
    fd = (int)syscall(SYS_memfd_create, "zfast-arena", flags);
  *reader = -1;
  return fd;
#else
  (void)reader;
  errno = ENOSYS;
  return -1;
#endif
}

static int zf_open_file(const char *folder, int *reader) {
  *reader = -1;
#ifdef O_TMPFILE
  int unnamed = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (unnamed >= 0) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", unnamed);
    *reader = open(path, O_RDONLY | O_CLOEXEC);
    return unnamed;
  }
#endif
  char path[4096];
  if (snprintf(path, sizeof path, "%s/zfast-arena-XXXXXX", folder) >= (int)sizeof path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  int fd = mkstemp(path);
  if (fd < 0) return -1;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  *reader = open(path, O_RDONLY | O_CLOEXEC);
  int error = errno;
  unlink(path);
  errno = error;
  return fd;
}

static int zf_allocate(int fd, size_t nbytes) {
#ifdef __linux__
  /* A full file system would zero all that is left of it before it says so; memfds have none. */
  struct statvfs system;
  if (fstatvfs(fd, &system) == 0 && system.f_blocks &&
      (uint64_t)system.f_bavail * system.f_frsize < nbytes)
    return ENOSPC;
  /* In pieces: a signal undoes the piece that it interrupts. */
  for (size_t at = 0; at < nbytes;) {
    size_t piece = nbytes - at < ZF_GRANULE ? nbytes - at : ZF_GRANULE;
    if (fallocate(fd, 0, (off_t)at, (off_t)piece) == 0)
      at += piece;
    else if (errno == EOPNOTSUPP)
      return posix_fallocate(fd, 0, (off_t)nbytes);
    else if (errno != EINTR)
      return errno;
  }
  return 0;
#else
  return ftruncate(fd, (off_t)nbytes) ? errno : 0;
#endif
}

/* Whole granules of address space, so that no other memory ever shares one with a segment. */
static char *zf_reserve(size_t nbytes) {
  size_t slack = nbytes + ZF_GRANULE;
  if (slack < nbytes) return NULL;
  char *raw = mmap(NULL, slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return NULL;
  char *base = (char *)(((uintptr_t)raw + ZF_GRANULE - 1) & ~(uintptr_t)(ZF_GRANULE - 1));
  if (base > raw) munmap(raw, (size_t)(base - raw));
  size_t after = slack - (size_t)(base - raw) - nbytes;
  if (after) munmap(base + nbytes, after);
  return base;
}

static int zf_seal(int fd) {
#ifdef ZF_SEALS
  if (fcntl(fd, F_ADD_SEALS, ZF_SEALS) == 0) return 1;
  fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW); /* Linux before 5.1 */
#endif
  (void)fd;
  return 0;
}

/* The descriptor to pass on instead of `fd`; `reader`, or -1, is a read-only one of the same file. */
static int zf_closed_to_writers(int fd, int reader) {
  if (zf_seal(fd)) {
    if (reader >= 0) close(reader);
    return fd;
  }
#ifdef __linux__
  if (reader < 0) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    reader = open(path, O_RDONLY | O_CLOEXEC);
  }
#endif
  /* Without seals, what is passed on can at least not be mapped for writing as it is. */
  if (reader < 0) return fd;
  close(fd);
  return reader;
}

int zf_fd_is_sealed(int fd) {
#ifdef ZF_SEALS
  int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) &&
         (seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE));
#else
  (void)fd;
  return 0;
#endif
}

int zf_backed_make(zf_backing backing, const char *folder, size_t nbytes, zf_backed *out) {
  int reader = -1;
  int fd = backing == ZF_MEMFD ? zf_open_memfd(&reader) : zf_open_file(folder, &reader);
  if (fd < 0) return errno;
  size_t reserved = (nbytes + ZF_GRANULE - 1) & ~(ZF_GRANULE - 1);
  char *base = NULL;
  int error = reserved < nbytes ? ENOMEM : zf_allocate(fd, nbytes);
  if (!error && !(base = zf_reserve(reserved))) error = ENOMEM;
  if (!error) {
    int flags = MAP_SHARED | MAP_FIXED;
#ifdef MAP_POPULATE
    flags |= MAP_POPULATE;
#endif
    if (mmap(base, nbytes, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED) error = errno;
  }
  if (error) {
    if (base) munmap(base, reserved);
    if (reader >= 0) close(reader);
    close(fd);
    return error;
  }
#ifndef MAP_POPULATE
  for (size_t at = 0; at < nbytes; at += 4096) ((volatile char *)base)[at] = 0;
#endif
  fd = zf_closed_to_writers(fd, reader);
  *out = (zf_backed){fd, base, nbytes, reserved};
  return 0;
}

void zf_backed_drop(zf_backed *backed) {
  munmap(backed->base, backed->reserved_nbytes);
  if (backed->fd >= 0) close(backed->fd);
}

/* Puts other pages at the addresses of a mapping, at one blow: who reads there sees the old ones or
 * the new. What fails leaves it as it was, where mappings can be moved; 0 or an errno. */
static int zf_map_over(char *target, size_t nbytes, int protection, int flags, int fd,
                       size_t offset) {
#ifdef __linux__
  char *made = mmap(NULL, nbytes, protection, flags, fd, (off_t)offset);
  if (made == MAP_FAILED) return errno;
  if (mremap(made, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) {
    int error = errno;
    munmap(made, nbytes);
    return error;
  }
  return 0;
#else
  flags |= MAP_FIXED;
  return mmap(target, nbytes, protection, flags, fd, (off_t)offset) == MAP_FAILED ? errno : 0;
#endif
}

int zf_backed_privatise(const zf_backed *backed, size_t offset, size_t nbytes) {
  return zf_map_over(backed->base + offset, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                     backed->fd, offset);
}

int zf_peer_map_over(void *base, size_t nbytes, int fd) {
  return zf_map_over(base, nbytes, PROT_READ, MAP_SHARED, fd, 0);
}

/* Written, not mapped: where there is no room for a page, that is an error and no signal. */
static int zf_write_at(int fd, const char *from, size_t nbytes, size_t offset) {
  while (nbytes) {
    ssize_t written = pwrite(fd, from, nbytes, (off_t)offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written ? errno : ENOSPC;
    from += written;
    nbytes -= (size_t)written;
    offset += (size_t)written;
  }
  return 0;
}

int zf_extract(int fd, size_t nbytes, const zf_range *ranges, size_t n, int *out) {
  size_t needed = 0;
  for (size_t i = 0; i < n; i++) {
    if (ranges[i].offset > nbytes || ranges[i].nbytes > nbytes - ranges[i].offset) return EINVAL;
    needed += ranges[i].nbytes;
  }
  zf_memory memory;
  zf_memory_read("/proc", "/sys/fs/cgroup", &memory);
  if (needed > memory.available_nbytes) return ENOMEM;
  char *from = mmap(NULL, nbytes, PROT_READ, MAP_SHARED, fd, 0);
  if (from == MAP_FAILED) return errno;
  int reader, made = zf_open_memfd(&reader), error = made < 0 ? errno : 0;
  if (!error && ftruncate(made, (off_t)nbytes)) error = errno;
  for (size_t i = 0; i < n && !error; i++)
    error = zf_write_at(made, from + ranges[i].offset, ranges[i].nbytes, ranges[i].offset);
  munmap(from, nbytes);
  if (error) {
    if (made >= 0) close(made);
    return error;
  }
  *out = zf_closed_to_writers(made, -1);
  return 0;
}
