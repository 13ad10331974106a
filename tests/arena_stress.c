/* The allocator without Python, from many threads at once, with forks in between; made to run under
 * ThreadSanitizer and AddressSanitizer.
 *
 *     arena_stress THREADS ROUNDS FORKS
 *
 * Exit status 0 when every block kept its pattern and nothing is left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pthread.h>

#include "arena.h"

#define KEPT 24

typedef struct {
  unsigned char *address;
  size_t nbytes;
  unsigned char pattern;
  uint64_t generation; /* 0: not published */
  int held;
} kept;

typedef struct {
  unsigned seed, rounds;
} work;

static void fail(const char *what) {
  fprintf(stderr, "arena_stress: %s\n", what);
  _exit(1);
}

static unsigned draw(unsigned *seed, unsigned below) {
  *seed = *seed * 1664525u + 1013904223u;
  return (*seed >> 8) % below;
}

static void check(const kept *one) {
  for (size_t at = 0; at < one->nbytes; at += 1024)
    if (one->address[at] != one->pattern) fail("a block changed");
  if (one->address[one->nbytes - 1] != one->pattern) fail("a block's end changed");
}

static void let_go(kept *one) {
  check(one);
  if (one->held) zf_arena_free(one->address);
  if (one->generation) {
    if (!zf_arena_is_sealed(one->address, one->nbytes)) fail("a published block went");
    check(one);
    if (!zf_arena_unpublish(one->generation)) fail("a publication went");
    zf_arena_unpublish(one->generation); /* twice does no harm */
  }
  memset(one, 0, sizeof *one);
}

static void make(kept *one, unsigned *seed) {
  int why;
  one->nbytes = 1 + draw(seed, draw(seed, 8) ? 40000 : 600000);
  one->address = zf_arena_malloc(one->nbytes, &why);
  if (!one->address) {
    if (why != ZF_OVER_CAP && why != ZF_MEMORY_LOW) fail("no memory for another reason");
    memset(one, 0, sizeof *one);
    return;
  }
  one->pattern = (unsigned char)draw(seed, 256);
  one->held = 1;
  memset(one->address, one->pattern, one->nbytes);
}

static void resize(kept *one, unsigned *seed) {
  size_t nbytes = 1 + draw(seed, 100000);
  unsigned char *moved = zf_arena_realloc(one->address, nbytes);
  if (!moved) return;
  one->address = moved;
  one->nbytes = one->nbytes < nbytes ? one->nbytes : nbytes;
  check(one);
  one->nbytes = nbytes;
  memset(moved, one->pattern, nbytes);
}

static void publish(kept *one) {
  zf_publication publication;
  zf_segment_info segment;
  /* 0: a fork made the block private. */
  if (zf_arena_publish(one->address, one->nbytes, 1, &publication) != 1) return;
  one->generation = publication.generation;
  if (!zf_arena_segment(publication.segment_index, &segment)) fail("a pinned segment went");
  void *seen = mmap(NULL, segment.nbytes, PROT_READ, MAP_SHARED, segment.fd, 0);
  if (seen == MAP_FAILED) return;
  if (((unsigned char *)seen)[publication.offset] != one->pattern) fail("a peer sees other data");
  munmap(seen, segment.nbytes);
}

static void *run(void *argument) {
  work *mine = argument;
  kept blocks[KEPT] = {{0}};
  for (unsigned round = 0; round < mine->rounds; round++) {
    kept *one = &blocks[draw(&mine->seed, KEPT)];
    unsigned what = draw(&mine->seed, 16);
    if (!one->address)
      make(one, &mine->seed);
    else if (what < 3 && !one->generation)
      publish(one);
    else if (what < 5 && one->held && one->generation) {
      zf_arena_free(one->address);
      one->held = 0;
      check(one);
    } else if (what < 8 && one->held && !one->generation)
      resize(one, &mine->seed);
    else if (what < 14)
      let_go(one);
    else if (what == 14 && round % 64 == 0)
      zf_arena_trim(0);
    else if (what == 15 && round % 64 == 0)
      zf_arena_prepare(4 << 20);
    else {
      uint64_t loan = zf_loan_begin();
      check(one);
      zf_loan_has_children(loan);
      zf_loan_end();
    }
  }
  for (int i = 0; i < KEPT; i++)
    if (blocks[i].address) let_go(&blocks[i]);
  return NULL;
}

/* A child that reads, overwrites and frees what it inherited, while the parent does the same. */
static void fork_once(unsigned *seed) {
  kept blocks[6] = {{0}};
  int go[2];
  for (int i = 0; i < 6; i++) {
    make(&blocks[i], seed);
    if (blocks[i].address && i % 2) publish(&blocks[i]);
  }
  if (pipe(go)) fail("no pipe");
  uint64_t loan = zf_loan_begin();
  pid_t child = fork();
  if (child < 0) fail("no fork");
  if (child == 0) {
    char byte;
    close(go[1]);
    if (read(go[0], &byte, 1) != 0) _exit(1); /* the parent has overwritten and freed */
    for (int i = 0; i < 6; i++) {
      if (!blocks[i].address) continue;
      check(&blocks[i]);
      memset(blocks[i].address, 0xEE, blocks[i].nbytes);
      zf_arena_free(blocks[i].address);
    }
    int why;
    _exit(zf_arena_malloc(1, &why) || why != ZF_FORKED);
  }
  close(go[0]);
  if (!zf_loan_has_children(loan)) fail("a child was missed");
  zf_loan_end();
  for (int i = 0; i < 6; i += 2) {
    if (!blocks[i].address) continue;
    memset(blocks[i].address, 0xDD, blocks[i].nbytes);
    blocks[i].pattern = 0xDD;
    zf_publication publication;
    if (zf_arena_publish(blocks[i].address, 1, 1, &publication)) fail("a private block went out");
    let_go(&blocks[i]);
  }
  kept again = {0};
  make(&again, seed);
  close(go[1]);
  int status;
  if (waitpid(child, &status, 0) != child || status) fail("the child saw something else");
  if (zf_loan_has_children(loan)) fail("a child is gone, but still expected");
  if (again.address) let_go(&again);
  for (int i = 1; i < 6; i += 2)
    if (blocks[i].address) let_go(&blocks[i]);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  unsigned n_threads = (unsigned)atoi(argv[1]), seed = 7;
  zf_arena_config config = {ZF_MEMFD, "", 1 << 20, 12 << 20, 4 << 20, 0};
  if (zf_arena_start(&config)) fail("did not start");
  pthread_t threads[64];
  work works[64];
  for (unsigned i = 0; i < n_threads; i++) {
    works[i] = (work){i + 1, (unsigned)atoi(argv[2])};
    if (pthread_create(&threads[i], NULL, run, &works[i])) fail("no thread");
  }
  for (int i = 0; i < atoi(argv[3]); i++) fork_once(&seed);
  for (unsigned i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
  zf_arena_trim(0);
  zf_arena_statistics now;
  zf_arena_count(&now);
  if (now.n_blocks || now.n_publications || now.n_segments || now.mapped_nbytes ||
      now.live_nbytes || now.published_nbytes || now.free_nbytes || now.retained_nbytes)
    fail("something is left");
  printf("%llu allocations, %llu refused, %llu segments\n", (unsigned long long)now.n_allocations,
         (unsigned long long)now.n_refusals, (unsigned long long)now.n_segments_made);
  return 0;
}
