// Every CPU kernel under ThreadSanitizer: on plain threads, 1 to 64 of them, and two calls at once.
// The kernels ask for threads through common/parallel.h, so no torch and no OpenMP is in the picture,
// whose barriers the sanitizer does not know. Built and run by csrc/tsan.sh.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "cpu/bpr.h"
#include "cpu/check_index.h"
#include "cpu/info_nce.h"
#include "cpu/keep_mask.h"
#include "cpu/norm_act.h"
#include "cpu/spmm.h"
#include "cpu/topk.h"
#include "cpu/view_attention.h"
#include "host/index.h"
#include "host/lists.h"

namespace {

using mmssl::bf16;
using mmssl::Parallel;

Parallel pool_of(int threads) {
  Parallel pool;
  pool.threads = threads;
  pool.run = [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < count; ++i) others.emplace_back(body, i, i + 1, context);
    body(0, 1, context);
    for (auto& thread : others) thread.join();
  };
  return pool;
}

void narrow(double v, float& out) { out = float(v); }
void narrow(double v, double& out) { out = v; }
void narrow(double v, bf16& out) { out = mmssl::to_bf16(float(v)); }

template <class T>
std::vector<T> numbers(int64_t count, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> out(count);
  for (T& v : out) narrow(normal(random), v);
  return out;
}

std::vector<int64_t> ids(int64_t count, int64_t limit, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> out(count);
  for (int64_t& v : out) v = random() % limit;
  return out;
}

// A (rows, columns) matrix whose row 0 is long enough to be shared between tasks.
struct Matrix {
  Matrix(int64_t rows, int64_t columns_, int64_t degree, int64_t hub) : columns(columns_) {
    std::mt19937 random(7);
    rowptr.push_back(0);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t count = r == 0 ? hub : degree;
      for (int64_t e = 0; e < count; ++e) col.push_back(int32_t(random() % columns));
      std::sort(col.end() - count, col.end());
      rowptr.push_back(int64_t(col.size()));
    }
  }
  int64_t columns;
  std::vector<int64_t> rowptr;
  std::vector<int32_t> col;
};

using Bytes = std::vector<char>;

// What a kernel wrote, to be held against what one thread writes.
template <class... Results>
Bytes bytes_of(const Results&... results) {
  Bytes out;
  auto add = [&](const auto& values) {
    const char* first = reinterpret_cast<const char*>(values.data());
    out.insert(out.end(), first, first + values.size() * sizeof(values[0]));
  };
  (add(results), ...);
  return out;
}

template <class T, class A>
Bytes run_spmm(const Parallel& pool) {
  const Matrix m(400, 300, 12, 9000);
  const int64_t rows = 400, d = 48, nnz = m.col.size();
  const auto x = numbers<T>(m.columns * d), g = numbers<T>(rows * d, 2);
  const auto value = numbers<A>(nnz, 3);
  const mmssl::SparseArgs<A> a{rows,    nnz,     m.rowptr.data(), m.col.data(),
                               nullptr, nullptr, value.data(),    nullptr,
                               m.columns};
  std::vector<T> y(rows * d), other(rows * d);
  std::vector<A> grad(nnz);
  const std::vector<mmssl::SparseProduct<T, A>> products{{a, x.data(), y.data(), d},
                                                         {a, x.data(), other.data(), d}};
  bool good = mmssl::cpu::spmm(std::span(products), pool);
  good &= mmssl::cpu::spmm_value_grad(a, g.data(), x.data(), grad.data(), d, pool);
  good &= mmssl::cpu::rises_from_zero(m.rowptr.data(), rows, nnz, pool);
  good &= mmssl::cpu::ids_in_range(m.col.data(), nnz, m.columns, pool);
  return bytes_of(y, other, grad, std::vector<char>{good});
}

template <class T, class A>
Bytes run_info_nce(const Parallel& pool) {
  const mmssl::cpu::InfoNceArgs a{2, 300, 37, 24, true, true, 0.2, 1e-8};
  const int64_t size = a.pairs * a.n * a.d;
  const auto anchor = numbers<T>(size), positive = numbers<T>(size, 2);
  const auto negatives = numbers<T>(a.k * a.d, 3);
  const auto grad = numbers<A>(a.pairs * a.n, 4);
  std::vector<A> loss(a.pairs * a.n), grad_temperature(1);
  std::vector<double> saved(3 * a.pairs * a.n);
  std::vector<T> ga(size), gp(size), gn(a.k * a.d);
  mmssl::cpu::info_nce_forward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                                     loss.data(), saved.data(), pool);
  mmssl::cpu::info_nce_backward<T, A>(a, anchor.data(), positive.data(), negatives.data(),
                                      saved.data(), grad.data(), ga.data(), gp.data(), gn.data(),
                                      grad_temperature.data(), pool);
  return bytes_of(loss, saved, ga, gp, gn, grad_temperature);
}

template <class T, class A>
Bytes run_topk(const Parallel& pool) {
  const Matrix m(130, 700, 9, 300);
  const int64_t users = 130, d = 20, k = 15;
  const auto user = numbers<T>(users * d), item = numbers<T>(m.columns * d, 2);
  std::vector<A> scores(users * k);
  std::vector<int64_t> items(users * k);
  mmssl::cpu::masked_topk<T, A>({users, m.columns, users, d, k, user.data(), item.data(), nullptr,
                                 m.rowptr.data(), m.col.data(), scores.data(), items.data()},
                                pool);
  return bytes_of(scores, items);
}

template <class T, class A>
Bytes run_bpr(const Parallel& pool) {
  const int64_t users = 90, items = 70, batch = 3000, d = 20;
  const auto user_emb = numbers<T>(users * d), item_emb = numbers<T>(items * d, 2);
  const auto user = ids(batch, users, 3), pos = ids(batch, items, 4), neg = ids(batch, items, 5);
  const mmssl::BprArgs<T> a{user_emb.data(), item_emb.data(), user.data(), pos.data(), neg.data(),
                            users,           items,           batch,       d};
  std::vector<A> loss(1), squares(1), slope(batch);
  std::vector<T> grad_user(users * d), grad_item(items * d);
  mmssl::cpu::bpr_forward<T, A>(a, loss.data(), squares.data(), slope.data(), pool);
  mmssl::cpu::bpr_backward<T, A>(a, A(1), A(0.1), slope.data(), grad_user.data(),
                                 grad_item.data(), pool);
  return bytes_of(loss, squares, slope, grad_user, grad_item);
}

template <class T, class A>
Bytes run_norm_act(const Parallel& pool) {
  const int64_t n = 700, h = 96;
  const auto x = numbers<T>(n * h), grad = numbers<T>(n * h, 2), up = numbers<T>(n * h, 3);
  const auto weight = numbers<A>(h, 4), bias = numbers<A>(h, 5);
  std::vector<uint8_t> keep(n * h);
  mmssl::cpu::keep_mask(42, 0, keep.data(), n * h, pool);
  const mmssl::cpu::NormActArgs<A> a{n, h, weight.data(), keep.data(), A(2), A(0.2)};
  std::vector<T> y(n * h), gx(n * h), ogy(n * h), ox(n * h);
  std::vector<A> mean(h), rstd(h), gw(h), gb(h), ow(h);
  mmssl::cpu::norm_act<T, A>(a, x.data(), bias.data(), A(1e-5), y.data(), mean.data(), rstd.data(),
                             pool);
  mmssl::cpu::norm_act_backward<T, A>(a, grad.data(), x.data(), mean.data(), rstd.data(), gx.data(),
                                      gw.data(), gb.data(), pool);
  mmssl::cpu::norm_act_double_backward<T, A>(a, up.data(), weight.data(), bias.data(), grad.data(),
                                             x.data(), mean.data(), rstd.data(), ogy.data(),
                                             ox.data(), ow.data(), pool);
  return bytes_of(keep, y, mean, rstd, gx, gw, gb, ogy, ox, ow);
}

template <class T, class A>
Bytes run_view_attention(const Parallel& pool) {
  const mmssl::cpu::ViewAttentionSize size{3, 900, 32, 4};
  const int64_t count = size.views * size.nodes * size.dim;
  const auto query = numbers<T>(count), key = numbers<T>(count, 2), view = numbers<T>(count, 3);
  const auto grad = numbers<T>(size.nodes * size.heads * size.dim, 4);
  std::vector<T> out(grad.size()), gq(count), gk(count), gv(count);
  mmssl::cpu::view_attention<T, A>(size, query.data(), key.data(), view.data(), out.data(), pool);
  mmssl::cpu::view_attention_backward<T, A>(size, grad.data(), query.data(), key.data(),
                                            view.data(), gq.data(), gk.data(), gv.data(), pool);
  return bytes_of(out, gq, gk, gv);
}

// Its threads are its own: as many as there are cores, from 2^18 edges a thread.
Bytes run_host(const Parallel&) {
  const int64_t users = 3000, items = 2000, edges = (int64_t(1) << 19) + 11, k = 200;
  const auto user = ids(edges, users, 1), item = ids(edges, items, 2);
  const auto index = mmssl::host::build_index(user.data(), item.data(), edges, users, items);
  std::vector<int32_t> lists(users * k);
  for (int64_t i = 0; i < users * k; ++i) {
    lists[i] = i / k % 5 == 0 ? -1 : int32_t((i / k * 7 + i % k) % items);
  }
  const int64_t nnz = index.col.size();
  const mmssl::host::Csr csr{index.rowptr.data(), index.col.data(), users, items, nnz};
  const auto listed = mmssl::host::index_of_lists(lists.data(), k, csr);
  return bytes_of(index.rowptr, index.col, index.colptr, index.row, index.perm, listed.rowptr,
                  listed.col, listed.colptr, listed.row);
}

int kernels = 0, runs = 0;

void try_kernel(const char* name, const std::function<Bytes(const Parallel&)>& kernel) {
  const Bytes expected = kernel(Parallel{});
  ++kernels;
  for (const int threads : {2, 3, 8, 64}) {
    const Parallel pool = pool_of(threads);
    Bytes first, second;
    std::thread other([&] { second = kernel(pool); });  // two callers at once
    first = kernel(pool);
    other.join();
    runs += 2;
    if (first != expected || second != expected) {
      std::fprintf(stderr, "%s: other bits with %d threads\n", name, threads);
      std::exit(1);
    }
  }
}

template <class T, class A>
void try_types(const char* type) {
  const auto named = [&](const char* name) { return std::string(name) + " " + type; };
  try_kernel(named("spmm").c_str(), run_spmm<T, A>);
  try_kernel(named("info_nce").c_str(), run_info_nce<T, A>);
  try_kernel(named("masked_topk").c_str(), run_topk<T, A>);
  try_kernel(named("bpr_loss").c_str(), run_bpr<T, A>);
  try_kernel(named("norm_act").c_str(), run_norm_act<T, A>);
  try_kernel(named("view_attention").c_str(), run_view_attention<T, A>);
}

}  // namespace

int main() {
  try_types<float, float>("float32");
  try_types<bf16, float>("bfloat16");
  try_types<double, double>("float64");
  try_kernel("host", run_host);
  std::printf("races: none in %d parallel runs of %d kernels on 2 to 64 threads\n", runs, kernels);
}
