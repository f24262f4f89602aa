// mmssl._host: work on index arrays that needs no torch. NumPy in, NumPy out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "host/index.h"
#include "host/lists.h"

namespace py = pybind11;

namespace {

using Ids = py::array_t<int64_t, py::array::c_style>;
using Columns = py::array_t<int32_t, py::array::c_style>;

constexpr const char* kBadMatrix =
    "rowptr must be non-decreasing from 0 to nnz, and col must hold columns of the matrix";

template <class T>
py::array_t<T> to_numpy(mmssl::host::Array<T>&& values) {
  auto* owner = new mmssl::host::Array<T>(std::move(values));
  py::capsule free(owner, [](void* p) { delete static_cast<mmssl::host::Array<T>*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(owner->size()), owner->data(), free);
}

py::tuple build_index(const Ids& user, const Ids& item, int64_t num_users, int64_t num_items) {
  if (user.ndim() != 1 || item.ndim() != 1 || user.size() != item.size()) {
    throw py::value_error("user and item must be one-dimensional and of one length");
  }
  const int64_t limit = (int64_t(1) << 31) - 1;
  if (num_users < 0 || num_items < 0 || num_users > limit || num_items > limit) {
    throw py::value_error("num_users and num_items must lie in [0, 2^31), got " +
                          std::to_string(num_users) + " and " + std::to_string(num_items));
  }
  const int64_t *u = user.data(), *i = item.data(), edges = user.size();
  mmssl::host::Index index;
  {
    py::gil_scoped_release release;
    index = mmssl::host::build_index(u, i, edges, num_users, num_items);
  }
  if (const int64_t e = index.bad_edge; e >= 0) {
    const bool bad_user = u[e] < 0 || u[e] >= num_users;
    throw py::value_error("edge " + std::to_string(e) + ": " + (bad_user ? "user " : "item ") +
                          std::to_string(bad_user ? u[e] : i[e]) + " is outside [0, " +
                          std::to_string(bad_user ? num_users : num_items) + ")");
  }
  return py::make_tuple(to_numpy(std::move(index.rowptr)), to_numpy(std::move(index.col)),
                        to_numpy(std::move(index.colptr)), to_numpy(std::move(index.row)),
                        to_numpy(std::move(index.perm)));
}

// Checks the shapes of a matrix's arrays. Their entries are checked where they are followed, since
// most calls follow few of them.
mmssl::host::Csr csr_of(const Ids& rowptr, const Columns& col, int64_t columns) {
  if (rowptr.ndim() != 1 || rowptr.size() < 1 || col.ndim() != 1 || columns < 0) {
    throw py::value_error("rowptr must be (U + 1,), col (E,), the number of columns at least 0");
  }
  const mmssl::host::Csr csr{rowptr.data(), col.data(), rowptr.size() - 1, columns, col.size()};
  if (csr.rowptr[0] != 0 || csr.rowptr[csr.rows] != col.size()) {
    throw py::value_error("rowptr must run from 0 to the number of edges, " +
                          std::to_string(col.size()));
  }
  return csr;
}

py::tuple index_of_lists(const Columns& lists, const Ids& rowptr, const Columns& col,
                         int64_t num_items) {
  const mmssl::host::Csr other = csr_of(rowptr, col, num_items);
  if (lists.ndim() != 2 || lists.shape(0) != other.rows) {
    throw py::value_error("lists must be (U, k), U = " + std::to_string(other.rows));
  }
  const int32_t* data = lists.data();
  const int64_t k = lists.shape(1);
  mmssl::host::Index index;
  {
    py::gil_scoped_release release;
    index = mmssl::host::index_of_lists(data, k, other);
  }
  if (const int64_t place = index.bad_edge; place >= 0) {
    throw py::value_error("list of user " + std::to_string(place / k) + ": item " +
                          std::to_string(data[place]) + " is outside [-1, " +
                          std::to_string(num_items) + ")");
  }
  if (index.bad_other) throw py::value_error(kBadMatrix);
  return py::make_tuple(to_numpy(std::move(index.rowptr)), to_numpy(std::move(index.col)),
                        to_numpy(std::move(index.colptr)), to_numpy(std::move(index.row)));
}

py::tuple edges_of_rows(const Ids& rowptr, const Columns& col, int64_t num_cols, const Ids& rows) {
  const mmssl::host::Csr matrix = csr_of(rowptr, col, num_cols);
  if (rows.ndim() != 1) throw py::value_error("rows must be (B,)");
  auto edges = mmssl::host::edges_of_rows(matrix, rows.data(), rows.size());
  if (edges.bad_row >= 0) {
    throw py::value_error("row " + std::to_string(rows.data()[edges.bad_row]) +
                          " is outside [0, " + std::to_string(matrix.rows) + ")");
  }
  if (edges.bad_matrix) throw py::value_error(kBadMatrix);
  return py::make_tuple(to_numpy(std::move(edges.position)), to_numpy(std::move(edges.item)),
                        to_numpy(std::move(edges.rowptr)), to_numpy(std::move(edges.col)),
                        to_numpy(std::move(edges.t_rowptr)), to_numpy(std::move(edges.t_col)),
                        to_numpy(std::move(edges.t_edge)));
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Index arrays of graphs and batches.";
  m.def("build_index", &build_index, py::arg("user"), py::arg("item"), py::arg("num_users"),
        py::arg("num_items"),
        "(E,) int64 ids -> rowptr, col, colptr, row, perm of the distinct edges, sorted both ways.");
  m.def("index_of_lists", &index_of_lists, py::arg("lists"), py::arg("rowptr"), py::arg("col"),
        py::arg("num_items"),
        "(U, k) int32 lists of distinct items, -1 for none -> rowptr, col, colptr, row; a user whose "
        "list is empty has the edges of rowptr and col.");
  m.def("edges_of_rows", &edges_of_rows, py::arg("rowptr"), py::arg("col"), py::arg("num_cols"),
        py::arg("rows"),
        "(B,) int64 rows of a matrix -> position, item, rowptr, col, t_rowptr, t_col, t_edge of the "
        "(B, num_cols) matrix of their edges.");
}
