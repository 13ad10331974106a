/* A treap: an ordered set with O(log n) expected insert, remove and search, without allocation.
 * Nodes lie inside the things they order; keys are pairs of numbers. */
#ifndef ZF_TREE_H
#define ZF_TREE_H

#include <stddef.h>
#include <stdint.h>

typedef struct zf_node {
  struct zf_node *left, *right;
  uint64_t key, tie; /* ordered by key, then by tie */
  uint32_t priority;
} zf_node;

#define ZF_CONTAINER(node, type, member) ((type *)((char *)(node) - offsetof(type, member)))

static inline int zf_tree_before(uint64_t key, uint64_t tie, const zf_node *node) {
  return key < node->key || (key == node->key && tie < node->tie);
}

/* `node`'s key, tie and (random) priority are set; no equal key and tie is in the tree. */
static inline void zf_tree_insert(zf_node **root, zf_node *node) {
  while (*root && (*root)->priority >= node->priority)
    root = zf_tree_before(node->key, node->tie, *root) ? &(*root)->left : &(*root)->right;
  /* What was here is split by the new key into the node's two sides. */
  zf_node *rest = *root, **lower = &node->left, **upper = &node->right;
  *root = node;
  while (rest) {
    if (zf_tree_before(node->key, node->tie, rest)) {
      *upper = rest;
      upper = &rest->left;
      rest = rest->left;
    } else {
      *lower = rest;
      lower = &rest->right;
      rest = rest->right;
    }
  }
  *lower = *upper = NULL;
}

static inline void zf_tree_remove(zf_node **root, zf_node *node) {
  while (*root != node)
    root = zf_tree_before(node->key, node->tie, *root) ? &(*root)->left : &(*root)->right;
  zf_node *left = node->left, *right = node->right;
  while (left && right) {
    if (left->priority >= right->priority) {
      *root = left;
      root = &left->right;
      left = left->right;
    } else {
      *root = right;
      root = &right->left;
      right = right->left;
    }
  }
  *root = left ? left : right;
}

/* The first node at or after (key, tie), or NULL. */
static inline zf_node *zf_tree_from(zf_node *root, uint64_t key, uint64_t tie) {
  zf_node *found = NULL;
  while (root) {
    if (root->key < key || (root->key == key && root->tie < tie)) {
      root = root->right;
    } else {
      found = root;
      root = root->left;
    }
  }
  return found;
}

/* The last node whose key is at most `key`, or NULL. */
static inline zf_node *zf_tree_upto(zf_node *root, uint64_t key) {
  zf_node *found = NULL;
  while (root) {
    if (root->key <= key) {
      found = root;
      root = root->right;
    } else {
      root = root->left;
    }
  }
  return found;
}

static inline zf_node *zf_tree_last(zf_node *root) {
  while (root && root->right) root = root->right;
  return root;
}

#endif
