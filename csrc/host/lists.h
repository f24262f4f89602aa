// Index arrays from lists that are known to be valid: no search for repetitions, no general sort.
#pragma once
#include <cstdint>

#include "host/index.h"

namespace mmssl::host {

// U users and I items; E edges sorted by user, ascending within a user.
struct Csr {
  const int64_t* rowptr;  // (U + 1)
  const int32_t* col;     // (E)
  int64_t rows;           // U
  int64_t columns;        // I
  int64_t nnz;            // E
};

// The graph of every user's list (U, k) of distinct items, where -1 means no item; a user whose
// list is empty has the edges of `other`. perm is left out. bad_edge: the first position in `lists`
// with an item outside [-1, I), or -1; bad_other: `other` is not a valid matrix. The rest is empty
// then.
Index index_of_lists(const int32_t* lists, int64_t k, const Csr& other);

// The edges of some rows, as a (B, I) matrix sorted both ways.
struct RowEdges {
  Array<int64_t> position;  // (n), row in [0, B) of each edge
  Array<int64_t> item;      // (n)
  Array<int64_t> rowptr;    // (B + 1)
  Array<int32_t> col;       // (n), equal to item
  Array<int64_t> t_rowptr;  // (I + 1)
  Array<int32_t> t_col;     // (n), positions by item, ascending within an item
  Array<int64_t> t_edge;    // (n), index by item -> index by position
  int64_t bad_row = -1;     // the first entry of `rows` that is out of range; the rest is empty then
  bool bad_matrix = false;  // the matrix is invalid at one of the rows; the rest is empty then
};

RowEdges edges_of_rows(const Csr& matrix, const int64_t* rows, int64_t num_rows);

}  // namespace mmssl::host
