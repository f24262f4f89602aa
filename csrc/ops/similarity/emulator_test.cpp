// The CUDA kernels of similarity rows, run on the CPU against plain loops in double; the gradient
// against differences.
//   cd csrc/ops/similarity && g++ -std=c++20 -DMMSSL_EMULATE_CUDA -I../.. -x c++ emulator_test.cpp kernels.cu
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "emu/numbers.h"
#include "ops/similarity/kernels.cuh"

namespace {

using mmssl::test::normal;

struct Problem {
  int64_t blocks, rows, items, d, capacity = 0;
  std::vector<int64_t> rowptr{0};
  std::vector<int32_t> col{};
  std::vector<double> user{}, item{};

  mmssl::BatchRows edges() const { return {rows, capacity, rowptr.data(), col.data()}; }
};

Problem problem(int64_t blocks, int64_t rows, int64_t items, int64_t d) {
  std::mt19937 random(5);
  Problem p{blocks, rows, items, d};
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t i = 0; i < items; ++i) {
      if (random() % 4 < unsigned(b % 3)) p.col.push_back(int32_t(i));  // every third row is empty
    }
    p.rowptr.push_back(int64_t(p.col.size()));
  }
  p.capacity = int64_t(p.col.size()) + 37;
  p.col.resize(p.capacity, 0);
  p.user = normal<double>(blocks * rows * d, random);
  p.item = normal<double>(blocks * items * d, random);
  return p;
}

// left and value of one row, and the derivative of <to_left, left> + <to_value, value> along a change
// of the row's user vector by finite differences is what the gradient is compared with.
struct Truth {
  std::vector<double> left, value, masked;
  double scale = 0;
};
Truth truth(const Problem& p, int64_t block, int64_t row, const std::vector<double>& user,
            const std::vector<double>& item) {
  const double* u = user.data() + (block * p.rows + row) * p.d;
  Truth t;
  double square = 0, whole = 0;
  int64_t edge = p.rowptr[row];
  for (int64_t i = 0; i < p.items; ++i) {
    double score = 0;
    for (int64_t k = 0; k < p.d; ++k) score += u[k] * item[(block * p.items + i) * p.d + k];
    whole += score * score;
    if (edge < p.rowptr[row + 1] && p.col[edge] == i) {
      ++edge;
      t.masked.push_back(score);
    } else {
      square += score * score;
    }
  }
  t.scale = square > 1e-12 * whole ? 1 / std::sqrt(square) : 0;
  for (int64_t k = 0; k < p.d; ++k) t.left.push_back(t.scale * u[k]);
  for (const double m : t.masked) t.value.push_back(-t.scale * m);
  return t;
}

int wrong = 0;
void close(double found, double exact, double tolerance, const char* what) {
  if (std::fabs(found - exact) <= tolerance * (1 + std::fabs(exact))) return;
  if (++wrong < 20) std::printf("%s: %g instead of %g\n", what, found, exact);
}

template <class T>
void check(const Problem& p, double tolerance) {
  const int64_t K = p.blocks, B = p.rows, D = p.d, n = p.capacity;
  std::mt19937 random(6);
  const std::vector<T> user(p.user.begin(), p.user.end()), item(p.item.begin(), p.item.end());
  const std::vector<double> exact_user(user.begin(), user.end()), exact_item(item.begin(), item.end());
  std::vector<double> through(K * B * D);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < p.items; ++i) {
        const double* e = exact_item.data() + (k * p.items + i) * D;
        double score = 0;
        for (int64_t c = 0; c < D; ++c) score += exact_user[(k * B + b) * D + c] * e[c];
        for (int64_t c = 0; c < D; ++c) through[(k * B + b) * D + c] += score * e[c];
      }
    }
  }
  std::vector<T> left(K * B * D, NAN), value(K * n, NAN), masked(K * n, NAN), scale(K * B, NAN);
  const mmssl::SimilarityArgs<T> a{p.edges(), K, D, user.data(), item.data(),
                                   p.items * D, D, through.data()};
  mmssl::cuda::launch_similarity_factors<T>(
      a, {left.data(), value.data(), masked.data(), scale.data()}, nullptr);

  const auto to_left = normal<T>(K * B * D, random), to_value = normal<T>(K * n, random);
  std::vector<T> to_user(K * B * D, NAN), to_masked(K * n, NAN), weighted(K * B * D, NAN);
  mmssl::cuda::launch_similarity_factors_backward<T>(
      a, {to_left.data(), to_value.data(), masked.data(), scale.data(), to_user.data(),
          to_masked.data(), weighted.data()}, nullptr);
  const auto pairing = [&](int64_t k, int64_t b, const std::vector<double>& u,
                           const std::vector<double>& e) {
    const Truth t = truth(p, k, b, u, e);
    double sum = 0;
    for (int64_t c = 0; c < D; ++c) sum += to_left[(k * B + b) * D + c] * t.left[c];
    for (size_t j = 0; j < t.value.size(); ++j) {
      sum += to_value[k * n + p.rowptr[b] + int64_t(j)] * t.value[j];
    }
    return sum;
  };
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t b = 0; b < B; ++b) {
      const Truth t = truth(p, k, b, exact_user, exact_item);
      close(scale[k * B + b], t.scale, tolerance, "scale");
      for (int64_t c = 0; c < D; ++c) {
        const int64_t at = (k * B + b) * D + c;
        close(left[at], t.left[c], tolerance, "left");
        std::vector<double> moved = exact_user;
        moved[at] += 1e-5;
        const double above = pairing(k, b, moved, exact_item);
        moved[at] -= 2e-5;
        const double below = pairing(k, b, moved, exact_item);
        if (t.scale > 0) close(to_user[at], (above - below) / 2e-5, tolerance + 1e-6, "to_user");
      }
      for (size_t j = 0; j < t.value.size(); ++j) {
        const int64_t at = k * n + p.rowptr[b] + int64_t(j);
        close(value[at], t.value[j], tolerance, "value");
        close(masked[at], t.masked[j], tolerance, "masked");
      }
    }
    for (int64_t e = p.rowptr[B]; e < n; ++e) {
      wrong += value[k * n + e] != 0 || masked[k * n + e] != 0 || to_masked[k * n + e] != 0;
    }
  }
  // The gradient for an item, as it is put together from to_masked and weighted.
  for (int64_t c = 0; c < D; ++c) {
    double found = 0;
    std::vector<double> above = exact_item, below = exact_item;
    const int64_t at = (K - 1) * p.items * D + c;  // the last block's first item
    above[at] += 1e-5, below[at] -= 1e-5;
    double difference = 0;
    for (int64_t b = 0; b < B; ++b) {
      const int64_t row = ((K - 1) * B + b) * D;
      double inner = 0;
      for (int64_t o = 0; o < D; ++o) {
        inner += exact_item[(K - 1) * p.items * D + o] * exact_user[row + o];
      }
      found += inner * weighted[row + c];
      for (int64_t e = p.rowptr[b]; e < p.rowptr[b + 1]; ++e) {
        if (p.col[e] == 0) found += to_masked[(K - 1) * n + e] * exact_user[row + c];
      }
      difference += (pairing(K - 1, b, exact_user, above) - pairing(K - 1, b, exact_user, below));
    }
    close(found, difference / 2e-5, 10 * tolerance + 1e-5, "item");
  }

  std::vector<T> uniform(n);
  for (T& u : uniform) u = T((random() % 1000 + 0.5) / 1000);
  std::vector<T> out_left(left.begin(), left.begin() + B * D);
  std::vector<T> out_value(value.begin(), value.begin() + n);
  const T tau = T(0.3), noise = T(0.5), zeta = T(3);
  mmssl::cuda::launch_gumbel_rows<T>({p.edges(), D, uniform.data(), out_left.data(), out_value.data(),
                                      tau, noise, zeta}, nullptr);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<double> soft;
    double sum = 0, square = scale[b] > 0 ? double(zeta) * zeta : 0;
    for (int64_t e = p.rowptr[b]; e < p.rowptr[b + 1]; ++e) {
      const double gumbel = -std::log(1e-8 - std::log(double(uniform[e]) + 1e-8));
      soft.push_back(std::exp(noise * gumbel / tau));
      sum += soft.back();
    }
    for (const double s : soft) square += s / sum * (s / sum);
    if (square == 0) continue;
    for (size_t j = 0; j < soft.size(); ++j) {
      const int64_t e = p.rowptr[b] + int64_t(j);
      close(out_value[e], (soft[j] / sum + zeta * value[e]) / std::sqrt(square), tolerance, "real");
    }
    for (int64_t c = 0; c < D; ++c) {
      close(out_left[b * D + c], zeta * left[b * D + c] / std::sqrt(square), tolerance, "real left");
    }
  }
}

// Rows and items of K tables in one place, and in double.
template <class T>
void check_tables(int64_t K, int64_t B, int64_t I, int64_t D) {
  std::mt19937 random(9);
  const int64_t U = B + 3;
  std::vector<std::vector<T>> tables;
  std::vector<int64_t> users(B);
  for (int64_t b = 0; b < B; ++b) users[b] = int64_t(random() % U);
  std::vector<T> out_user(K * B * D, NAN), out_item(I * K * D, NAN);
  std::vector<double> wide_user(K * B * D, NAN), wide_item(K * I * D, NAN);
  mmssl::SimilarityTables<T> a{K, B, I, D, users.data(), {}, {}, {}, {}, out_user.data(),
                               out_item.data(), wide_user.data(), wide_item.data()};
  for (int64_t k = 0; k < K; ++k) {
    for (const int64_t rows : {U, I}) {
      tables.emplace_back(rows * (D + 2));
      for (T& v : tables.back()) v = T(double(random() % 1000) / 1000);
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    a.user[k] = tables[2 * k].data(), a.item[k] = tables[2 * k + 1].data();
    a.user_step[k] = a.item_step[k] = D + 2;
  }
  mmssl::cuda::launch_similarity_tables(a, nullptr);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < D; ++c) {
      for (int64_t b = 0; b < B; ++b) {
        const T want = tables[2 * k][users[b] * (D + 2) + c];
        const int64_t at = (k * B + b) * D + c;
        wrong += out_user[at] != want || wide_user[at] != double(want);
      }
      for (int64_t i = 0; i < I; ++i) {
        const T want = tables[2 * k + 1][i * (D + 2) + c];
        wrong += out_item[(i * K + k) * D + c] != want;
        wrong += wide_item[(k * I + i) * D + c] != double(want);
      }
    }
  }
}

void check_stack(const Problem& p) {
  const int64_t K = p.blocks, B = p.rows, n = p.capacity, used = p.rowptr[B], C = p.items;
  std::vector<int64_t> t_rowptr{0}, t_edge;
  std::vector<int32_t> t_col;
  for (int64_t i = 0; i < C; ++i) {
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t e = p.rowptr[b]; e < p.rowptr[b + 1]; ++e) {
        if (p.col[e] == i) t_col.push_back(int32_t(b)), t_edge.push_back(e);
      }
    }
    t_rowptr.push_back(int64_t(t_col.size()));
  }
  t_col.resize(n, 0);
  for (int64_t e = used; e < n; ++e) t_edge.push_back(e);
  std::vector<int64_t> rowptr(K * B + 1, -1), out_t_rowptr(C + 1, -1), edge(K * n, -1), to(K * n, -1);
  std::vector<int32_t> col(K * n, -1), out_t_col(K * n, -1);
  mmssl::cuda::launch_stack_edges(
      {p.edges(), K, C, t_rowptr.data(), t_col.data(), t_edge.data(), rowptr.data(),
       out_t_rowptr.data(), col.data(), out_t_col.data(), edge.data(), to.data()}, nullptr);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t b = 0; b < B; ++b) {
      wrong += rowptr[k * B + b] != k * used + p.rowptr[b];
      for (int64_t e = p.rowptr[b]; e < p.rowptr[b + 1]; ++e) {
        wrong += col[k * used + e] != p.col[e] || edge[k * used + e] != k * n + e;
      }
    }
  }
  wrong += rowptr[K * B] != K * used;
  std::vector<int> seen(K * n);
  for (const int64_t e : edge) ++seen.at(e);
  for (const int64_t e : to) ++seen.at(e);
  for (const int s : seen) wrong += s != 2;  // both are permutations
  for (int64_t i = 0; i < C; ++i) {
    wrong += out_t_rowptr[i] != K * t_rowptr[i];
    for (int64_t q = out_t_rowptr[i]; q < out_t_rowptr[i + 1]; ++q) {
      const int64_t k = to[q] / n, e = to[q] % n, b = out_t_col[q] - k * B;
      wrong += p.col[e] != i || e < p.rowptr[b] || e >= p.rowptr[b + 1];
    }
  }
  wrong += out_t_rowptr[C] != K * used;
}

}  // namespace

int main() {
  check_tables<float>(3, 7, 11, 5);
  check_tables<double>(1, 1, 2, 33);
  for (int64_t blocks : {1, 3}) {
    for (int64_t d : {1, 9, 40}) {
      const Problem p = problem(blocks, 7, 21, d);
      check<float>(p, 3e-4);
      check<double>(p, 1e-9);
      check_stack(p);
    }
  }
  check_stack(problem(2, 0, 3, 2));
  std::printf(wrong == 0 ? "emulated CUDA similarity: ok\n" : "emulated CUDA similarity: FAILED\n");
  return wrong != 0;
}
