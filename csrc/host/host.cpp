// mmssl._host: work on index arrays that needs no torch. NumPy in, NumPy out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "host/index.h"

namespace py = pybind11;

namespace {

using Ids = py::array_t<int64_t, py::array::c_style>;

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

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Index building for InteractionGraph.";
  m.def("build_index", &build_index, py::arg("user"), py::arg("item"), py::arg("num_users"),
        py::arg("num_items"),
        "(E,) int64 ids -> rowptr, col, colptr, row, perm of the distinct edges, sorted both ways.");
}
