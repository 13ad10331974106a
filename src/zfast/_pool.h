/* Warm memory for received values: anonymous mappings that are kept after use.
 *
 * Fresh memory costs a page fault for each page, which is more than the copy into it. So a block
 * goes on a free list when its last view dies, and the next value of about its size is received
 * into pages that are there. Memory on the list is bounded, and given back when it was idle.
 *
 * Any thread may take and return blocks, with or without the GIL. */
#pragma once
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { ZF_SMALL_STEP = 64 * 1024, ZF_HUGE_PAGE = 2 * 1024 * 1024 };

typedef struct zf_block {
  struct zf_block *next;
  char *data;
  size_t capacity;
  int64_t idle_since_ms;
} zf_block;

static struct {
  pthread_mutex_t mutex;
  zf_block *free; /* the last used one first */
  size_t retained, retained_max, in_use;
  uint64_t reused, mapped;
} zf_pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .retained_max = 512u * 1024 * 1024};

/* A fork in the middle of a change must not leave the child half a list. */
static void zf_pool_before_fork(void) { pthread_mutex_lock(&zf_pool.mutex); }
static void zf_pool_after_fork(void) { pthread_mutex_unlock(&zf_pool.mutex); }
static void zf_pool_init(void) {
  pthread_atfork(zf_pool_before_fork, zf_pool_after_fork, zf_pool_after_fork);
}

static int64_t zf_now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sizes that differ little share a block: steps of an eighth of the next smaller power of two. */
static size_t zf_capacity_for(size_t nbytes) {
  size_t step = ZF_SMALL_STEP;
  while (step < nbytes / 16) step *= 2;
  if (nbytes >= ZF_HUGE_PAGE && step < ZF_HUGE_PAGE) step = ZF_HUGE_PAGE;
  size_t capacity = (nbytes + step - 1) / step * step;
  return capacity ? capacity : step;
}

static void zf_block_unmap(zf_block *block) {
  munmap(block->data, block->capacity);
  free(block);
}

static zf_block *zf_block_map(size_t nbytes) {
  size_t capacity = zf_capacity_for(nbytes);
  size_t slack = capacity >= ZF_HUGE_PAGE ? ZF_HUGE_PAGE : 0; /* to cut an aligned piece from */
  if (capacity < nbytes || capacity + slack < capacity) return NULL;
  zf_block *block = (zf_block *)malloc(sizeof(zf_block));
  if (!block) return NULL;
  char *data = (char *)mmap(NULL, capacity + slack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == (char *)MAP_FAILED) {
    free(block);
    return NULL;
  }
  if (slack) {
    size_t before = (size_t)(-(uintptr_t)data & (ZF_HUGE_PAGE - 1));
    if (before) munmap(data, before);
    if (slack - before) munmap(data + before + capacity, slack - before);
    data += before;
#ifdef MADV_HUGEPAGE
    madvise(data, capacity, MADV_HUGEPAGE);
#endif
  }
  block->data = data;
  block->capacity = capacity;
  return block;
}

/* Unmap what the pool holds beyond `keep` bytes, and what was idle since before `before_ms`; the
 * longest idle first. */
static void zf_pool_trim(size_t keep, int64_t before_ms) {
  zf_block *dropped = NULL;
  pthread_mutex_lock(&zf_pool.mutex);
  size_t kept = 0;
  zf_block **link = &zf_pool.free;
  while (*link) {
    zf_block *block = *link;
    if (kept + block->capacity <= keep && block->idle_since_ms >= before_ms) {
      kept += block->capacity;
      link = &block->next;
    } else {
      *link = block->next;
      block->next = dropped;
      dropped = block;
    }
  }
  zf_pool.retained = kept;
  pthread_mutex_unlock(&zf_pool.mutex);
  while (dropped) {
    zf_block *next = dropped->next;
    zf_block_unmap(dropped);
    dropped = next;
  }
}

/* A block of at least `nbytes`: the smallest free one that is not twice too large, else a new one.
 * NULL when there is no memory. */
static zf_block *zf_pool_take(size_t nbytes) {
  zf_block **best = NULL, *block = NULL;
  size_t too_large = zf_capacity_for(nbytes) * 2;
  pthread_mutex_lock(&zf_pool.mutex);
  for (zf_block **link = &zf_pool.free; *link; link = &(*link)->next) {
    size_t capacity = (*link)->capacity;
    if (capacity >= nbytes && capacity < too_large && (!best || capacity < (*best)->capacity))
      best = link;
  }
  if (best) {
    block = *best;
    *best = block->next;
    zf_pool.retained -= block->capacity;
    zf_pool.in_use += block->capacity;
    zf_pool.reused++;
  }
  pthread_mutex_unlock(&zf_pool.mutex);
  if (block) return block;
  block = zf_block_map(nbytes);
  if (!block) { /* address space or a limit: what is idle may make room */
    zf_pool_trim(0, 0);
    block = zf_block_map(nbytes);
  }
  if (block) {
    pthread_mutex_lock(&zf_pool.mutex);
    zf_pool.in_use += block->capacity;
    zf_pool.mapped++;
    pthread_mutex_unlock(&zf_pool.mutex);
  }
  return block;
}

/* Take a block back. What does not fit beside it, the longest idle, goes. */
static void zf_pool_put(zf_block *block) {
  pthread_mutex_lock(&zf_pool.mutex);
  zf_pool.in_use -= block->capacity;
  block->idle_since_ms = zf_now_ms();
  block->next = zf_pool.free;
  zf_pool.free = block;
  zf_pool.retained += block->capacity;
  size_t keep = zf_pool.retained_max;
  int full = zf_pool.retained > keep;
  pthread_mutex_unlock(&zf_pool.mutex);
  if (full) zf_pool_trim(keep, 0);
}

static void zf_pool_limit(size_t nbytes) {
  pthread_mutex_lock(&zf_pool.mutex);
  zf_pool.retained_max = nbytes;
  pthread_mutex_unlock(&zf_pool.mutex);
  zf_pool_trim(nbytes, 0);
}

static void zf_pool_stats(size_t *retained, size_t *in_use, uint64_t *reused, uint64_t *mapped) {
  pthread_mutex_lock(&zf_pool.mutex);
  *retained = zf_pool.retained;
  *in_use = zf_pool.in_use;
  *reused = zf_pool.reused;
  *mapped = zf_pool.mapped;
  pthread_mutex_unlock(&zf_pool.mutex);
}

/* libzmq allocates each large frame with malloc and frees it from another thread; glibc then
 * trims the heap, and the next frame faults its pages in again. glibc raises its thresholds when a
 * mapped chunk is freed, as any program does that works with arrays: do that once, so that `nbytes`
 * of frames may come and go in the same pages. Programs that set mallopt are left alone. */
static void zf_keep_heap_warm(size_t nbytes) {
  void *volatile chunk = malloc(nbytes);
  free(chunk);
}

/* Copy past the cache, where the processor can: memory that is read much later need not be read
 * before it is overwritten, nor drive from the cache what is copied next. */
static void zf_copy_past_cache(char *to, const char *from, size_t nbytes) {
#ifdef __SSE2__
  size_t head = (size_t)(-(uintptr_t)to & 63);
  if (nbytes > head) {
    memcpy(to, from, head);
    to += head, from += head, nbytes -= head;
    for (; nbytes >= 64; to += 64, from += 64, nbytes -= 64) {
      __m128i a = _mm_loadu_si128((const __m128i *)from);
      __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
      __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
      __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
      _mm_stream_si128((__m128i *)to, a);
      _mm_stream_si128((__m128i *)(to + 16), b);
      _mm_stream_si128((__m128i *)(to + 32), c);
      _mm_stream_si128((__m128i *)(to + 48), d);
    }
    _mm_sfence();
  }
#endif
  memcpy(to, from, nbytes);
}
