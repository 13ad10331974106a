/* The arena: one process's shared memory, in segments that other processes may map read-only.
 *
 * Plain C that knows no Python. Every function may be called from any thread; none needs the GIL.
 * All bookkeeping lies in private memory: what a peer can see is data only.
 *
 * A block is free, then live (somebody holds it), then, once published, sealed: immutable for the
 * rest of its life. It is free again when it is neither held nor published.
 *
 * fork(): see arena.c. A forked child has no arena; what it inherited is private to it.
 */
#ifndef ZF_ARENA_H
#define ZF_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef enum { ZF_MEMFD, ZF_SHM, ZF_DISK } zf_backing;

typedef struct {
  zf_backing backing;
  const char *folder;    /* of an unlinked file: ZF_SHM, ZF_DISK */
  size_t segment_nbytes; /* a larger block has a segment of its own */
  size_t cap_nbytes;     /* of all segments together */
  size_t retain_nbytes;  /* of empty segments that are kept warm */
  size_t margin_nbytes;  /* left to the machine and to each cgroup when a segment is made */
} zf_arena_config;

/* Why there is no memory; a positive number is the system's errno. */
enum { ZF_NOT_STARTED = -1, ZF_FORKED = -2, ZF_OVER_CAP = -3, ZF_MEMORY_LOW = -4,
       ZF_TOO_MANY_SEGMENTS = -5 };

typedef struct {
  uint8_t segment_id[16];
  uint64_t segment_index; /* never used again in this process */
  uint64_t generation;    /* never used again in this process; 0 is none */
  size_t block_offset, block_nbytes; /* in the segment */
  size_t offset;                     /* of the published address, in the segment */
} zf_publication;

typedef struct {
  uint8_t id[16];
  int fd; /* the arena's own */
  char *base;
  size_t nbytes;
} zf_segment_info;

typedef struct {
  uint64_t n_segments, n_retired_segments, n_blocks, n_publications;
  uint64_t n_allocations, n_refusals, n_segments_made;
  uint64_t mapped_nbytes, live_nbytes, published_nbytes, free_nbytes, retained_nbytes;
  uint64_t retired_nbytes, largest_free_nbytes, peak_mapped_nbytes, peak_live_nbytes;
} zf_arena_statistics;

typedef struct {
  uint64_t total_nbytes;     /* what this process could ever have */
  uint64_t available_nbytes; /* before the machine or a cgroup is short of memory */
} zf_memory;

/* 0, or an errno; the first call decides. */
int zf_arena_start(const zf_arena_config *config);
int zf_arena_started(void);

/* Whether the address is in the arena. Two loads, no lock. */
int zf_arena_owns(const void *address);

/* A block of at least `nbytes`, aligned to a page; NULL: `*why` says why. */
void *zf_arena_malloc(size_t nbytes, int *why);
/* The block at another size: in place, or copied within the arena. NULL: it is as it was.
 * Published blocks stay where and as they are, and are let go; the copy is the caller's. */
void *zf_arena_realloc(void *block, size_t nbytes);
/* The holder lets go. What is published stays until the last publication ends. */
void zf_arena_free(void *block);
/* The block's length, rounded to pages; 0 for an address that is not a block's. */
size_t zf_arena_block_nbytes(void *block);

/* 1: published. 0: not the arena's, not immutable (neither sealed nor `exclusive`), or private
 * since a fork. -1: no memory for the bookkeeping. */
int zf_arena_publish(const void *address, size_t nbytes, int exclusive, zf_publication *out);
/* 1, or 0 for a generation that is unknown or over. */
int zf_arena_unpublish(uint64_t generation);
int zf_arena_is_sealed(const void *address, size_t nbytes);
/* The address of a range that lies in one sealed block, or NULL. */
void *zf_arena_sealed_range(uint64_t segment_index, size_t offset, size_t nbytes);

/* 1, or 0 for a segment that is not there (any more). */
int zf_arena_segment(uint64_t segment_index, zf_segment_info *out);
/* Up to `n` segments that were handed out by zf_arena_segment and released since. */
size_t zf_arena_released(uint64_t *segment_indices, size_t n);

/* Makes segments until `nbytes` are free and warm; 0, or why not. */
int zf_arena_prepare(size_t nbytes);
/* Gives back empty segments, the longest unused first, until at most `retain_nbytes` are kept. */
void zf_arena_trim(size_t retain_nbytes);
void zf_arena_count(zf_arena_statistics *out);

/* Memory of this process, from `proc` ("/proc") and the cgroups below `cgroup`. */
void zf_memory_read(const char *proc, const char *cgroup, zf_memory *out);

/* ---- what peers lend: loans.c ---- */

/* A view of a peer's memory begins; the number of forks so far. */
uint64_t zf_loan_begin(void);
void zf_loan_end(void);
/* Whether a child that was forked since the loan began may be alive. */
int zf_loan_has_children(uint64_t begun);

/* ---- a segment's memory: backing.c ---- */

/* Owner's mapping, aligned to ZF_GRANULE and alone in its granules. */
typedef struct {
  int fd;
  char *base;
  size_t nbytes, reserved_nbytes;
} zf_backed;

#define ZF_GRANULE ((size_t)64 << 20)

/* Allocates, maps, faults in and seals; 0 or an errno. */
int zf_backed_make(zf_backing backing, const char *folder, size_t nbytes, zf_backed *out);
void zf_backed_drop(zf_backed *backed);
/* Makes a range of the owner's mapping private to this process; 0 or an errno. */
int zf_backed_privatise(const zf_backed *backed, size_t offset, size_t nbytes);
/* Shows a peer's mapping another file of that length, at the same addresses; 0 or an errno. */
int zf_peer_map_over(void *base, size_t nbytes, int fd);

typedef struct {
  size_t offset, nbytes;
} zf_range;

/* A new file as long as `fd`'s that holds some ranges of it, in their places, and no other memory;
 * sealed. 0 or an errno. */
int zf_extract(int fd, size_t nbytes, const zf_range *ranges, size_t n, int *out);
/* Whether peers are kept from writing and shrinking by seals. */
int zf_fd_is_sealed(int fd);

#endif
