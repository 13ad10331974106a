/* Blocks, publications and what fork() does to them.
 *
 * Two locks. `structure` is held while segments come or go, which takes milliseconds, and by
 * fork(); `books` is held for moments, while the books are read or written. Order: structure,
 * then books.
 *
 * fork() is a snapshot, so neither process may see what the other writes later. Before it, each
 * live block that is not sealed is made private in the parent, and thus in the child. In the
 * child, everything else is made private too. Every segment with a block in it is retired: the
 * parent never allocates from it again and releases it whole when its last block is gone. So what
 * a child can see is never used again, and nobody has to know how long a child lives. Empty
 * segments are unmapped in the child and stay in use. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/random.h>
#endif

#include "tree.h"

typedef struct zf_segment zf_segment;

typedef struct zf_block {
  zf_node by_address; /* in its segment's tree of used blocks */
  zf_node by_size;    /* in the tree of free blocks */
  zf_segment *segment;
  struct zf_block *before, *after; /* neighbours in the segment; of a spare: the next spare */
  size_t offset, nbytes;
  uint32_t n_publications;
  unsigned char used, held, sealed, private_; /* private_: made so by a fork, for good */
} zf_block;

struct zf_segment {
  uint8_t id[16];
  uint64_t index, emptied_at;
  zf_backed memory;
  zf_node *used;
  zf_block *first;
  size_t n_used;
  int retired, handed_out;
  zf_segment *next;
};

typedef struct {
  zf_node by_generation;
  zf_block *block;
} zf_pin;

static pthread_mutex_t structure = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t books = PTHREAD_MUTEX_INITIALIZER;
static atomic_int started, forked, release_due;
static zf_arena_config config;
static size_t page_nbytes;

/* All below: under `books`. */
static zf_segment *segments;
static zf_node *free_blocks, *pins;
static zf_block *spare_blocks;
static size_t retain_nbytes, empty_nbytes; /* of segments that are empty and not retired */
static uint64_t next_index = 1, next_generation = 1, clock_;
static uint32_t random_state = 2463534242u;
static zf_arena_statistics counts;
static uint64_t *released;
static size_t n_released, released_room;

/* ---- which segment an address lies in ---- */

/* Addresses have at most 48 bits here; each granule of them belongs to one segment or none. */
#define ZF_LEAF_BITS 11
#define ZF_GRANULE_BITS 26
typedef struct {
  _Atomic(zf_segment *) segment[1 << ZF_LEAF_BITS];
} zf_leaf;
static _Atomic(zf_leaf *) leaves[1 << (48 - ZF_GRANULE_BITS - ZF_LEAF_BITS)];

static zf_segment *segment_of(const void *address) {
  uint64_t granule = (uint64_t)(uintptr_t)address >> ZF_GRANULE_BITS;
  if (granule >> (48 - ZF_GRANULE_BITS)) return NULL;
  zf_leaf *leaf = atomic_load_explicit(&leaves[granule >> ZF_LEAF_BITS], memory_order_acquire);
  if (!leaf) return NULL;
  return atomic_load_explicit(&leaf->segment[granule & ((1 << ZF_LEAF_BITS) - 1)],
                              memory_order_acquire);
}

static int enter_granules(const zf_backed *memory, zf_segment *segment) {
  uint64_t first = (uint64_t)(uintptr_t)memory->base >> ZF_GRANULE_BITS;
  uint64_t n = memory->reserved_nbytes >> ZF_GRANULE_BITS;
  if ((first + n) >> (48 - ZF_GRANULE_BITS)) return ENOMEM;
  for (uint64_t granule = first; granule < first + n; granule++) {
    _Atomic(zf_leaf *) *place = &leaves[granule >> ZF_LEAF_BITS];
    zf_leaf *leaf = atomic_load_explicit(place, memory_order_acquire);
    if (!leaf) {
      if (!(leaf = calloc(1, sizeof *leaf))) return ENOMEM;
      atomic_store_explicit(place, leaf, memory_order_release);
    }
    atomic_store_explicit(&leaf->segment[granule & ((1 << ZF_LEAF_BITS) - 1)], segment,
                          memory_order_release);
  }
  return 0;
}

int zf_arena_owns(const void *address) { return segment_of(address) != NULL; }

/* ---- blocks; all under `books` ---- */

static uint32_t random_priority(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

static zf_block *block_new(zf_segment *segment, size_t offset, size_t nbytes) {
  zf_block *block = spare_blocks;
  if (block)
    spare_blocks = block->after;
  else if (!(block = malloc(sizeof *block)))
    return NULL;
  memset(block, 0, sizeof *block);
  block->segment = segment;
  block->offset = offset;
  block->nbytes = nbytes;
  return block;
}

static void block_drop(zf_block *block) {
  block->after = spare_blocks;
  spare_blocks = block;
}

static char *block_address(const zf_block *block) {
  return block->segment->memory.base + block->offset;
}

static void enter_free(zf_block *block) {
  block->by_size.key = block->nbytes;
  block->by_size.tie = (uint64_t)(uintptr_t)block_address(block);
  block->by_size.priority = random_priority();
  zf_tree_insert(&free_blocks, &block->by_size);
  counts.free_nbytes += block->nbytes;
}

static void leave_free(zf_block *block) {
  zf_tree_remove(&free_blocks, &block->by_size);
  counts.free_nbytes -= block->nbytes;
}

static void mark_used(zf_block *block) {
  zf_segment *segment = block->segment;
  if (!segment->n_used++) empty_nbytes -= segment->memory.nbytes;
  block->used = block->held = 1;
  block->by_address.key = (uint64_t)(uintptr_t)block_address(block);
  block->by_address.priority = random_priority();
  zf_tree_insert(&segment->used, &block->by_address);
  counts.n_blocks++;
}

static void count_live(size_t more, size_t less) {
  counts.live_nbytes += more - less;
  if (counts.live_nbytes > counts.peak_live_nbytes) counts.peak_live_nbytes = counts.live_nbytes;
}

/* Cuts the block to `nbytes`; the rest becomes a block of its own, in no tree. NULL: no memory. */
static zf_block *block_split(zf_block *block, size_t nbytes) {
  zf_block *rest =
      block_new(block->segment, block->offset + nbytes, block->nbytes - nbytes);
  if (!rest) return NULL;
  rest->before = block;
  rest->after = block->after;
  if (rest->after) rest->after->before = rest;
  block->after = rest;
  block->nbytes = nbytes;
  return rest;
}

/* Joins the block with the one after it, which is in no tree. */
static void block_join(zf_block *block) {
  zf_block *gone = block->after;
  block->nbytes += gone->nbytes;
  block->after = gone->after;
  if (block->after) block->after->before = block;
  block_drop(gone);
}

static zf_block *block_take(size_t nbytes) {
  zf_node *node = zf_tree_from(free_blocks, nbytes, 0); /* the best fit */
  if (!node) return NULL;
  zf_block *block = ZF_CONTAINER(node, zf_block, by_size);
  leave_free(block);
  if (block->nbytes > nbytes) {
    zf_block *rest = block_split(block, nbytes);
    if (!rest) {
      enter_free(block);
      return NULL;
    }
    enter_free(rest);
  }
  mark_used(block);
  counts.n_allocations++;
  count_live(nbytes, 0);
  return block;
}

/* A used block that nobody needs becomes free, joined with its neighbours. */
static void block_give(zf_block *block) {
  zf_segment *segment = block->segment;
  zf_tree_remove(&segment->used, &block->by_address);
  block->used = block->sealed = 0;
  counts.n_blocks--;
  segment->n_used--;
  if (segment->retired) {
    if (!segment->n_used) atomic_store(&release_due, 1);
    return;
  }
  if (block->after && !block->after->used) {
    leave_free(block->after);
    block_join(block);
  }
  if (block->before && !block->before->used) {
    block = block->before;
    leave_free(block);
    block_join(block);
  }
  enter_free(block);
  if (!segment->n_used) {
    segment->emptied_at = ++clock_;
    empty_nbytes += segment->memory.nbytes;
    if (empty_nbytes > retain_nbytes) atomic_store(&release_due, 1);
  }
}

/* The used block that contains the range, or NULL. */
static zf_block *block_with(const void *address, size_t nbytes) {
  zf_segment *segment = segment_of(address);
  if (!segment) return NULL;
  uint64_t start = (uint64_t)(uintptr_t)address;
  zf_node *node = zf_tree_upto(segment->used, start);
  if (!node) return NULL;
  zf_block *block = ZF_CONTAINER(node, zf_block, by_address);
  uint64_t into = start - node->key;
  return into < block->nbytes && nbytes <= block->nbytes - into ? block : NULL;
}

/* The block that starts there and is held, or NULL. */
static zf_block *block_held_at(const void *address) {
  zf_block *block = block_with(address, 0);
  return block && block->held && block_address(block) == (const char *)address ? block : NULL;
}

/* ---- segments; under `structure`, `books` free unless said otherwise ---- */

/* Under both locks: out of all books. The caller drops its memory, then frees it. */
static void segment_leave(zf_segment *segment) {
  zf_segment **link = &segments;
  while (*link != segment) link = &(*link)->next;
  *link = segment->next;
  for (zf_block *block = segment->first, *after; block; block = after) {
    after = block->after;
    if (!segment->retired) leave_free(block);
    block_drop(block);
  }
  if (segment->retired) {
    counts.n_retired_segments--;
    counts.retired_nbytes -= segment->memory.nbytes;
  } else {
    empty_nbytes -= segment->memory.nbytes;
  }
  counts.n_segments--;
  counts.mapped_nbytes -= segment->memory.nbytes;
  enter_granules(&segment->memory, NULL);
  if (!segment->handed_out) return;
  if (n_released == released_room) {
    size_t room = released_room ? 2 * released_room : 16;
    uint64_t *grown = realloc(released, room * sizeof *released);
    if (!grown) return; /* its holders keep a descriptor too long, no more */
    released = grown;
    released_room = room;
  }
  released[n_released++] = segment->index;
}

/* Being refused is not free: the system is asked, perhaps pages are zeroed in vain. So the answer
 * holds for a moment, or until memory is given back; meanwhile the caller's heap costs nothing
 * extra. Under `structure`. */
#define ZF_REFUSAL_MS 100
static struct {
  uint64_t until_ms;
  size_t nbytes;
  int why;
} refusal;

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void segment_drop(zf_segment *segment) {
  zf_backed_drop(&segment->memory);
  free(segment);
  refusal.until_ms = 0;
}

/* Releases one retired segment that is empty or, if more than `keep_nbytes` are empty, the one
 * that has been so for longest; 0 when there is none. */
static int release_one(size_t keep_nbytes) {
  zf_segment *victim = NULL;
  pthread_mutex_lock(&books);
  for (zf_segment *segment = segments; segment; segment = segment->next) {
    if (segment->n_used) continue;
    if (segment->retired) {
      victim = segment;
      break;
    }
    if (empty_nbytes > keep_nbytes && (!victim || segment->emptied_at < victim->emptied_at))
      victim = segment;
  }
  if (victim) segment_leave(victim);
  pthread_mutex_unlock(&books);
  if (!victim) return 0;
  segment_drop(victim);
  return 1;
}

/* Without locks. Whoever holds `structure` calls this after unlocking it, so that a release that
 * is due waits for nobody and is never forgotten. */
static void release_what_is_due(void) {
  while (atomic_load(&release_due)) {
    if (pthread_mutex_trylock(&structure)) return;
    atomic_store(&release_due, 0);
    pthread_mutex_lock(&books);
    size_t keep_nbytes = retain_nbytes;
    pthread_mutex_unlock(&books);
    while (release_one(keep_nbytes)) continue;
    pthread_mutex_unlock(&structure);
  }
}

static int random_bytes(uint8_t *out, size_t n) {
#ifdef __linux__
  if (getrandom(out, n, 0) == (ssize_t)n) return 0;
#endif
  int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  ssize_t got = read(fd, out, n);
  close(fd);
  return got == (ssize_t)n ? 0 : EIO;
}

/* How long a new segment may be now; `*why` says what keeps it from having `nbytes`. */
static size_t room_for_segment(size_t nbytes, int *why) {
  pthread_mutex_lock(&books);
  size_t mapped = counts.mapped_nbytes, n = counts.n_segments;
  pthread_mutex_unlock(&books);
  /* Each segment costs a descriptor; half of them are for the rest of the process. */
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && n >= files.rlim_cur / 2) {
    *why = ZF_TOO_MANY_SEGMENTS;
    return 0;
  }
  size_t room = config.cap_nbytes > mapped ? config.cap_nbytes - mapped : 0;
  *why = ZF_OVER_CAP;
  if (nbytes > room) return room & ~(page_nbytes - 1);
  zf_memory memory;
  zf_memory_read("/proc", "/sys/fs/cgroup", &memory);
  uint64_t left = memory.available_nbytes > config.margin_nbytes
                      ? memory.available_nbytes - config.margin_nbytes
                      : 0;
  if (left < room) {
    *why = ZF_MEMORY_LOW;
    room = left;
  }
  return room & ~(page_nbytes - 1);
}

/* A new segment of that size, one free block, in the books; 0 or an errno. */
static int segment_add(size_t nbytes) {
  zf_segment *segment = calloc(1, sizeof *segment);
  if (!segment) return ENOMEM;
  int error = random_bytes(segment->id, sizeof segment->id);
  if (!error) error = zf_backed_make(config.backing, config.folder, nbytes, &segment->memory);
  if (error) {
    free(segment);
    return error;
  }
  pthread_mutex_lock(&books);
  segment->first = block_new(segment, 0, nbytes);
  error = segment->first ? enter_granules(&segment->memory, segment) : ENOMEM;
  if (!error) {
    segment->index = next_index++;
    segment->emptied_at = ++clock_;
    segment->next = segments;
    segments = segment;
    empty_nbytes += nbytes;
    counts.n_segments++;
    counts.n_segments_made++;
    counts.mapped_nbytes += nbytes;
    if (counts.mapped_nbytes > counts.peak_mapped_nbytes)
      counts.peak_mapped_nbytes = counts.mapped_nbytes;
    enter_free(segment->first);
  } else {
    enter_granules(&segment->memory, NULL);
    if (segment->first) block_drop(segment->first);
  }
  pthread_mutex_unlock(&books);
  if (error) {
    zf_backed_drop(&segment->memory);
    free(segment);
  }
  return error;
}

/* A new segment with room for `nbytes`; 0, or why not. If there is no room, empty segments make
 * some where `may_release`. */
static int segment_make(size_t nbytes, int may_release) {
  if (nbytes >= refusal.nbytes && now_ms() < refusal.until_ms) return refusal.why;
  for (;;) {
    int why;
    size_t room = room_for_segment(nbytes, &why);
    if (nbytes <= room) {
      size_t size = room < config.segment_nbytes ? room : config.segment_nbytes;
      if (size < nbytes) size = nbytes;
      why = segment_add(size);
      if (why && size > nbytes) why = segment_add(nbytes);
      if (!why) return 0;
    }
    if (!may_release) return why;
    pthread_mutex_lock(&books);
    size_t reach = room + empty_nbytes;
    pthread_mutex_unlock(&books);
    if (nbytes > reach || !release_one(0)) {
      refusal.until_ms = now_ms() + ZF_REFUSAL_MS;
      refusal.nbytes = nbytes;
      refusal.why = why;
      return why;
    }
  }
}

/* ---- fork ---- */

static void before_fork(void) {
  pthread_mutex_lock(&structure);
  pthread_mutex_lock(&books);
  if (atomic_load(&forked)) return;
  for (zf_segment *segment = segments; segment; segment = segment->next) {
    if (!segment->n_used) continue;
    if (!segment->retired) {
      segment->retired = 1;
      counts.n_retired_segments++;
      counts.retired_nbytes += segment->memory.nbytes;
      for (zf_block *block = segment->first; block; block = block->after)
        if (!block->used) leave_free(block);
    }
    for (zf_block *block = segment->first; block; block = block->after) {
      zf_block *last = NULL, *end = block;
      size_t nbytes = 0;
      for (; end && end->used && !end->sealed && !end->private_; end = end->after) {
        nbytes += end->nbytes;
        last = end;
      }
      if (!last) continue;
      if (zf_backed_privatise(&segment->memory, block->offset, nbytes) == 0)
        for (zf_block *one = block; one != end; one = one->after) one->private_ = 1;
      block = last;
    }
  }
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&books);
  pthread_mutex_unlock(&structure);
  release_what_is_due();
}

static void lock_away(zf_segment *segment, size_t offset, size_t nbytes) {
  static const char words[] =
      "zfast: a forked process cannot have its own copy of shared memory; it may not use it\n";
  if (write(2, words, sizeof words - 1) < 0) { /* nobody to tell */ }
  if (mprotect(segment->memory.base + offset, nbytes, PROT_NONE)) abort();
}

static void after_fork_in_child(void) {
  if (!atomic_load(&forked)) {
    atomic_store(&forked, 1);
    for (zf_segment **link = &segments, *segment; (segment = *link);) {
      if (!segment->n_used) {
        *link = segment->next;
        enter_granules(&segment->memory, NULL);
        zf_backed_drop(&segment->memory); /* the rest of it is the child's to leak */
        continue;
      }
      link = &segment->next;
      for (zf_block *block = segment->first; block; block = block->after) {
        if (block->private_) continue;
        /* Used and unsealed, but not private: it could not be made so in the parent, which may
         * have written since. */
        if ((block->used && !block->sealed) ||
            zf_backed_privatise(&segment->memory, block->offset, block->nbytes))
          lock_away(segment, block->offset, block->nbytes);
        block->private_ = 1;
      }
      close(segment->memory.fd);
      segment->memory.fd = -1;
    }
  }
  pthread_mutex_unlock(&books);
  pthread_mutex_unlock(&structure);
}

/* ---- the interface ---- */

int zf_arena_start(const zf_arena_config *wanted) {
  static int registered;
  if (atomic_load(&forked)) return EPERM;
  pthread_mutex_lock(&structure);
  int error = 0;
  if (!atomic_load(&started)) {
    page_nbytes = (size_t)sysconf(_SC_PAGESIZE);
    char *folder = strdup(wanted->folder ? wanted->folder : "");
    if (!folder) error = ENOMEM;
    if (!error && !registered) {
      error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
      registered = !error;
    }
    if (error) {
      free(folder);
    } else {
      config = *wanted;
      config.folder = folder;
      config.segment_nbytes = (config.segment_nbytes + page_nbytes - 1) & ~(page_nbytes - 1);
      retain_nbytes = config.retain_nbytes;
      atomic_store(&started, 1);
    }
  }
  pthread_mutex_unlock(&structure);
  return error;
}

int zf_arena_started(void) { return atomic_load(&started); }

static int unavailable(void) {
  return atomic_load(&forked) ? ZF_FORKED : atomic_load(&started) ? 0 : ZF_NOT_STARTED;
}

static size_t round_to_pages(size_t nbytes) {
  size_t rounded = (nbytes + page_nbytes - 1) & ~(page_nbytes - 1);
  return nbytes ? rounded : page_nbytes; /* 0 when it overflows */
}

void *zf_arena_malloc(size_t nbytes, int *why) {
  if ((*why = unavailable())) return NULL;
  size_t rounded = round_to_pages(nbytes);
  if (!rounded) {
    *why = ENOMEM;
    return NULL;
  }
  pthread_mutex_lock(&books);
  zf_block *block = block_take(rounded);
  pthread_mutex_unlock(&books);
  if (!block) {
    pthread_mutex_lock(&structure);
    pthread_mutex_lock(&books);
    block = block_take(rounded); /* somebody made a segment meanwhile */
    pthread_mutex_unlock(&books);
    if (!block) {
      *why = segment_make(rounded, 1);
      pthread_mutex_lock(&books);
      /* Others take from a new segment too, but never all of it before this: try again then. */
      while (!*why && !(block = block_take(rounded))) {
        pthread_mutex_unlock(&books);
        *why = segment_make(rounded, 1);
        pthread_mutex_lock(&books);
      }
      if (!block) counts.n_refusals++;
      pthread_mutex_unlock(&books);
    }
    pthread_mutex_unlock(&structure);
    release_what_is_due();
  }
  return block ? block_address(block) : NULL;
}

void zf_arena_free(void *address) {
  if (atomic_load(&forked)) return;
  pthread_mutex_lock(&books);
  zf_block *block = block_held_at(address);
  if (block) {
    block->held = 0;
    count_live(0, block->nbytes);
    if (!block->n_publications) block_give(block);
  }
  pthread_mutex_unlock(&books);
  release_what_is_due();
}

/* Under `books`: whether the block now has the wanted length, where it is. */
static int resize_in_place(zf_block *block, size_t nbytes) {
  size_t before = block->nbytes;
  if (block->sealed) return 0;
  if (nbytes == before) return 1;
  if (block->segment->retired) return nbytes < before;
  zf_block *after = block->after;
  if (after && after->used) after = NULL;
  if (nbytes > before && (!after || after->nbytes < nbytes - before)) return 0;
  if (after) {
    leave_free(after);
    block_join(block);
  }
  if (block->nbytes > nbytes) {
    zf_block *rest = block_split(block, nbytes);
    if (rest) enter_free(rest); /* else the block is longer than it need be */
  }
  count_live(block->nbytes, before);
  return 1;
}

void *zf_arena_realloc(void *address, size_t nbytes) {
  size_t rounded = round_to_pages(nbytes), before = 0;
  if (unavailable() || !rounded) return NULL;
  pthread_mutex_lock(&books);
  zf_block *block = block_held_at(address);
  int done = 0;
  if (block) {
    before = block->nbytes;
    done = resize_in_place(block, rounded);
  }
  pthread_mutex_unlock(&books);
  if (done) return address;
  if (!block) return NULL;
  int why;
  void *copy = zf_arena_malloc(nbytes, &why);
  if (copy) {
    memcpy(copy, address, before < nbytes ? before : nbytes);
    zf_arena_free(address);
  }
  return copy;
}

size_t zf_arena_block_nbytes(void *address) {
  pthread_mutex_lock(&books);
  zf_block *block = block_held_at(address);
  size_t nbytes = block ? block->nbytes : 0;
  pthread_mutex_unlock(&books);
  return nbytes;
}

int zf_arena_publish(const void *address, size_t nbytes, int exclusive, zf_publication *out) {
  if (unavailable() || !nbytes || !zf_arena_owns(address)) return 0;
  zf_pin *pin = malloc(sizeof *pin);
  if (!pin) return -1;
  pthread_mutex_lock(&books);
  zf_block *block = block_with(address, nbytes);
  int done = block && !block->private_ && (block->sealed || exclusive);
  if (done) {
    zf_segment *segment = block->segment;
    block->sealed = 1;
    if (!block->n_publications++) counts.published_nbytes += block->nbytes;
    counts.n_publications++;
    pin->block = block;
    pin->by_generation.key = next_generation++;
    pin->by_generation.tie = 0;
    pin->by_generation.priority = random_priority();
    zf_tree_insert(&pins, &pin->by_generation);
    memcpy(out->segment_id, segment->id, sizeof segment->id);
    out->segment_index = segment->index;
    out->generation = pin->by_generation.key;
    out->block_offset = block->offset;
    out->block_nbytes = block->nbytes;
    out->offset = (size_t)((const char *)address - segment->memory.base);
  }
  pthread_mutex_unlock(&books);
  if (!done) free(pin);
  return done;
}

int zf_arena_unpublish(uint64_t generation) {
  if (unavailable()) return 0;
  pthread_mutex_lock(&books);
  zf_node *node = zf_tree_upto(pins, generation);
  zf_pin *pin = node && node->key == generation ? ZF_CONTAINER(node, zf_pin, by_generation) : NULL;
  if (pin) {
    zf_block *block = pin->block;
    zf_tree_remove(&pins, node);
    counts.n_publications--;
    if (!--block->n_publications) {
      counts.published_nbytes -= block->nbytes;
      if (!block->held) block_give(block);
    }
  }
  pthread_mutex_unlock(&books);
  free(pin);
  release_what_is_due();
  return pin != NULL;
}

int zf_arena_is_sealed(const void *address, size_t nbytes) {
  pthread_mutex_lock(&books);
  zf_block *block = block_with(address, nbytes);
  int sealed = block && block->sealed;
  pthread_mutex_unlock(&books);
  return sealed;
}

/* Under `books`. */
static zf_segment *segment_at(uint64_t index) {
  zf_segment *segment = segments;
  while (segment && segment->index != index) segment = segment->next;
  return segment;
}

void *zf_arena_sealed_range(uint64_t segment_index, size_t offset, size_t nbytes) {
  char *address = NULL;
  pthread_mutex_lock(&books);
  zf_segment *segment = segment_at(segment_index);
  if (segment && offset < segment->memory.nbytes) {
    zf_block *block = block_with(segment->memory.base + offset, nbytes);
    if (block && block->sealed) address = segment->memory.base + offset;
  }
  pthread_mutex_unlock(&books);
  return address;
}

int zf_arena_segment(uint64_t segment_index, zf_segment_info *out) {
  if (unavailable()) return 0;
  pthread_mutex_lock(&books);
  zf_segment *segment = segment_at(segment_index);
  if (segment) {
    segment->handed_out = 1;
    memcpy(out->id, segment->id, sizeof segment->id);
    out->fd = segment->memory.fd;
    out->base = segment->memory.base;
    out->nbytes = segment->memory.nbytes;
  }
  pthread_mutex_unlock(&books);
  return segment != NULL;
}

size_t zf_arena_released(uint64_t *segment_indices, size_t n) {
  pthread_mutex_lock(&books);
  if (n > n_released) n = n_released;
  n_released -= n;
  for (size_t i = 0; i < n; i++) segment_indices[i] = released[n_released + i];
  pthread_mutex_unlock(&books);
  return n;
}

int zf_arena_prepare(size_t nbytes) {
  int why = unavailable();
  while (!why) {
    /* One segment at a time: who needs one meanwhile waits for no more than that. */
    pthread_mutex_lock(&structure);
    pthread_mutex_lock(&books);
    if (nbytes > retain_nbytes) retain_nbytes = nbytes; /* else it would not stay */
    size_t there = counts.free_nbytes;
    pthread_mutex_unlock(&books);
    if (there < nbytes) {
      size_t missing = round_to_pages(nbytes - there);
      why = segment_make(missing < config.segment_nbytes ? missing : config.segment_nbytes, 0);
    }
    pthread_mutex_unlock(&structure);
    release_what_is_due();
    if (there >= nbytes) break;
  }
  return why;
}

void zf_arena_trim(size_t keep_nbytes) {
  if (unavailable()) return;
  pthread_mutex_lock(&structure);
  pthread_mutex_lock(&books);
  retain_nbytes = config.retain_nbytes;
  pthread_mutex_unlock(&books);
  while (release_one(keep_nbytes)) continue;
  pthread_mutex_unlock(&structure);
  release_what_is_due();
}

void zf_arena_count(zf_arena_statistics *out) {
  pthread_mutex_lock(&books);
  *out = counts;
  zf_node *largest = zf_tree_last(free_blocks);
  out->largest_free_nbytes = largest ? largest->key : 0;
  out->retained_nbytes = empty_nbytes;
  pthread_mutex_unlock(&books);
}
