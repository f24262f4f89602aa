// Splits a CSR matrix into tasks of about equal cost, whatever the skew of its rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/propagate/spmm.h"

namespace mmssl::cpu {

// Where a task begins. Ordinary rows are never cut; a long row (more than kChunkEdges) may be cut
// between two of its chunks, and then its chunk sums go to numbered slots and are added up later.
struct Cut {
  int64_t row;
  int64_t position;  // in [rowptr[row], rowptr[row + 1])
  int64_t slot;      // slot of the first chunk of this row; -1 if the row is not cut here
};

struct Partition {
  std::vector<Cut> cuts;         // tasks + 1
  std::vector<Cut> split_rows;   // each cut row once
  int64_t slots = 0;
  int64_t tasks() const { return static_cast<int64_t>(cuts.size()) - 1; }
};

inline int64_t num_chunks(int64_t degree) { return (degree + kChunkEdges - 1) / kChunkEdges; }

// A row costs one and an edge costs one (merge-path coordinates: Merrill and Garland, SC 2016).
inline Partition partition_rows(const int64_t* rowptr, int64_t rows, int64_t tasks) {
  Partition out;
  const int64_t total = rows + rowptr[rows];
  tasks = std::clamp<int64_t>(tasks, 1, std::max<int64_t>(total, 1));
  out.cuts.push_back({0, 0, -1});
  for (int64_t task = 1; task < tasks; ++task) {
    const int64_t target = total / tasks * task + total % tasks * task / tasks;
    int64_t low = out.cuts.back().row, high = rows;  // the last row with row + rowptr[row] <= target
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (middle + rowptr[middle] <= target ? low : high) = middle;
    }
    const int64_t first = rowptr[low], degree = rowptr[low + 1] - first;
    Cut cut{low, first, -1};
    if (degree > kChunkEdges) {
      const int64_t chunk = std::min((target - low - first) / kChunkEdges, num_chunks(degree) - 1);
      if (chunk > 0) {
        cut.position = first + chunk * kChunkEdges;
        const Cut* last = out.split_rows.empty() ? nullptr : &out.split_rows.back();
        if (last == nullptr || last->row != low) {
          out.split_rows.push_back({low, first, out.slots});
          out.slots += num_chunks(degree);
        }
        cut.slot = out.split_rows.back().slot;
      }
    }
    if (cut.row > out.cuts.back().row || cut.position > out.cuts.back().position) {
      out.cuts.push_back(cut);
    }
  }
  out.cuts.push_back({rows, rowptr[rows], -1});
  return out;
}

}  // namespace mmssl::cpu
