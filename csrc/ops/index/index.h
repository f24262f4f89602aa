// Index arrays of matrices whose rows are known: row pointers, columns, and the transpose of both. The
// arguments of the kernels as raw pointers.
#pragma once
#include <cstdint>

namespace mmssl {

// M matrices of R rows and C columns; their arrays of edges hold up to n edges each, and both
// pointers end at the number of edges.
struct IndexArrays {
  int64_t matrices, rows, columns, capacity;  // M, R, C, n
  int64_t* rowptr;    // (M, R + 1)
  int32_t* col;       // (M, n), ascending within a row; 0 behind the edges
  int64_t* t_rowptr;  // (M, C + 1)
  int32_t* t_col;     // (M, n), ascending within a column
  int64_t* t_edge;    // (M, n) or null: position by column -> by row, itself behind the edges
  // (M, R) and (M, C) or null: powers of the lengths of rows and columns, -1/2 with `root`, else -1;
  // 0 where nothing is.
  float *scale = nullptr, *t_scale = nullptr;
  bool root = false;
};

// Some rows of one matrix, M = 1.
struct RowsArgs {
  const int64_t* rowptr;  // of the matrix
  const int32_t* col;
  const int64_t* pick;    // (R)
  int64_t* position;      // (n): the row of an edge
  int64_t* item;          // (n): its column
  bool* live;             // (n): whether it is an edge; what is none repeats the last edge
};

// Every row's list, or its edges in another matrix where the list is empty.
struct ListsArgs {
  const int32_t* lists;   // (M, R, k) distinct columns, -1 where a list is shorter
  int64_t k;
  const int64_t* rowptr;  // (R + 1), of the other matrix
  const int32_t* col;     // (E)
  int64_t nnz;            // E
};

// New lists of some rows, for the lists of all rows.
struct StoredLists {
  static constexpr int64_t kMost = 16;  // matrices of one launch
  int64_t matrices, rows, k, count;     // M, R, k, B
  const int64_t* pick;                  // (B) distinct rows
  const int64_t* top[kMost];            // (B, k) for each matrix
  int32_t* lists;                       // (M, R, k)
};

}  // namespace mmssl
