// Range coding of integers with adaptive binary models, in integers alone: the same bits on every machine. The layout of a
// number, the models and their mixing are written out in splatexp_kernels/entropy/reference.py; this repeats it for speed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace nb = nanobind;

namespace {

using Ints = nb::ndarray<int32_t, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using MaybeInput = std::optional<Input>;

constexpr int UNARY = 14, LOWS = 7, PREFIX = 30, MAX_COLUMNS = 8;
enum Bin { ZERO, SIGN, UP, DOWN = UP + UNARY, LOW1 = DOWN + UNARY, LOW2 = LOW1 + LOWS, ESCAPE = LOW2 + 2, BINS = ESCAPE + PREFIX };
enum Kind { K_ZERO, K_SIGN, K_SIZE, K_LOW, KINDS };

constexpr int SURE = 80;            // times seen after which a model is as slow as it gets
constexpr int32_t WEIGHTS = 72000;   // of all columns together at first, 65536 being 1

struct Tables {
  int32_t squash[4096], stretch[4096], rate[SURE + 1];
  Tables() {
    static const int32_t knots[33] = {  // 65536 / (1 + exp(-x)) for x from -8 to 8 by 1/2
        22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
        40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514};
    for (int d = 0; d < 4096; d++) {
      const int k = d >> 7, w = d & 127;
      squash[d] = (knots[k] * (128 - w) + knots[k + 1] * w + 64) >> 7;
    }
    int next = 0;
    for (int d = 1; d < 4096; d++)
      for (const int last = squash[d] >> 4; next <= last; next++) stretch[next] = d - 2048;
    for (; next < 4096; next++) stretch[next] = 2047;
    for (int n = 0; n <= SURE; n++) rate[n] = 655360 / (10 * n + 17);
  }
};
const Tables tables;

struct Bit {
  uint16_t p;  // that it is 1, of 65536
  uint8_t n;   // how often it was seen
};

// The models of one kind of number: bits for each context of each column, and how much each column is listened to.
struct Bank {
  std::vector<int32_t> sizes;
  std::vector<std::vector<Bit>> bits;
  std::vector<int32_t> weights;  // [KINDS, columns]
};

struct Models {
  std::map<int, Bank> banks;
  Bank& bank(int key, const std::vector<int32_t>& sizes) {
    auto found = banks.find(key);
    if (found == banks.end()) {
      Bank b;
      b.sizes = sizes;
      for (int32_t size : sizes) b.bits.emplace_back((size_t)size * BINS, Bit{32768, 0});
      b.weights.assign(KINDS * sizes.size(), WEIGHTS / (int32_t)sizes.size());
      found = banks.emplace(key, std::move(b)).first;
    }
    if (found->second.sizes != sizes) throw std::invalid_argument("bank: its columns have other sizes than before");
    return found->second;
  }
};

struct Encoder {
  std::vector<uint8_t> out;
  uint32_t low = 0, range = 0xFFFFFFFFu;
  void add(uint64_t more) {
    const uint64_t sum = (uint64_t)low + more;
    low = (uint32_t)sum;
    if (sum >> 32)
      for (size_t i = out.size(); i-- > 0 && ++out[i] == 0;) {}
  }
  void shift() {
    for (; range < (1u << 24); range <<= 8) out.push_back((uint8_t)(low >> 24)), low <<= 8;
  }
  int bit(int value, uint32_t p) {
    const uint32_t one = (uint32_t)(((uint64_t)range * p) >> 16);
    if (value) range = one;
    else add(one), range -= one;
    shift();
    return value;
  }
  uint32_t uniform(uint32_t value, uint32_t n) {
    const uint32_t part = range / n;
    add((uint64_t)part * value);
    range = value == n - 1 ? range - part * (n - 1) : part;
    shift();
    return value;
  }
  // The fewest bytes that name a number inside the last interval; what follows them is read as zeros.
  std::vector<uint8_t> finish() {
    for (int bytes = 0;; bytes++) {
      const uint64_t mask = bytes < 4 ? (uint64_t(1) << (32 - 8 * bytes)) - 1 : 0, end = ((uint64_t)low + mask) & ~mask;
      if (end >= (uint64_t)low + range) continue;
      add(end - low);
      for (int i = 0; i < bytes; i++) out.push_back((uint8_t)(low >> (24 - 8 * i)));
      return out;
    }
  }
};

struct Decoder {
  const uint8_t* data;
  size_t size, at = 0;
  uint32_t code = 0, range = 0xFFFFFFFFu;
  Decoder(const uint8_t* d, size_t n) : data(d), size(n) {
    for (int i = 0; i < 4; i++) code = code << 8 | next();
    if (code == range) throw std::overflow_error("a range coder cannot have written this beginning");
  }
  uint8_t next() {
    if (at >= size + 4) throw std::overflow_error("the numbers go on behind the end of the data");
    const uint8_t byte = at < size ? data[at] : 0;
    at++;
    return byte;
  }
  void shift() {
    for (; range < (1u << 24); range <<= 8) code = code << 8 | next();
  }
  int bit(int, uint32_t p) {
    const uint32_t one = (uint32_t)(((uint64_t)range * p) >> 16);
    const int value = code < one;
    if (value) range = one;
    else code -= one, range -= one;
    shift();
    return value;
  }
  uint32_t uniform(uint32_t, uint32_t n) {
    const uint32_t part = range / n, value = std::min(code / part, n - 1);
    code -= part * value;
    range = value == n - 1 ? range - part * (n - 1) : part;
    shift();
    return value;
  }
};

// One number's models: the row of bits that each column's context chose.
struct Chosen {
  Bit* row[MAX_COLUMNS];
  int columns;
  int32_t* weights;

  template <class Coder>
  int code(Coder& coder, int value, int bin, Kind kind) {
    Bit* bits[MAX_COLUMNS];
    int32_t heard[MAX_COLUMNS], *w = weights + kind * columns;
    for (int m = 0; m < columns; m++) {
      bits[m] = row[m] + bin;
      heard[m] = tables.stretch[bits[m]->p >> 4];
    }
    uint32_t p;
    if (columns == 1) {
      p = bits[0]->p;
    } else {
      int64_t sum = 0;
      for (int m = 0; m < columns; m++) sum += (int64_t)w[m] * heard[m];
      const int64_t dot = std::min<int64_t>(std::max<int64_t>(sum >> 16, -2047), 2047);
      p = tables.squash[dot + 2048];
    }
    p = std::min(std::max(p, 24u), 65512u);
    value = coder.bit(value, p);
    if (columns > 1) {
      const int32_t error = (value ? 65536 : 0) - (int32_t)p;
      for (int m = 0; m < columns; m++) {
        const int64_t step = ((int64_t)heard[m] * error) >> 14;
        w[m] = (int32_t)std::min<int64_t>(std::max<int64_t>(w[m] + step, -(1 << 20)), 1 << 20);
      }
    }
    for (int m = 0; m < columns; m++) {
      Bit& b = *bits[m];
      const int32_t target = value ? 65535 : 0;
      b.p = (uint16_t)(b.p + (((int64_t)(target - b.p) * tables.rate[b.n]) >> 16));
      if (b.n < SURE) b.n++;
    }
    return value;
  }
};

template <class Coder>
uint32_t raw(Coder& coder, uint32_t value, int bits) {
  uint32_t got = 0;
  for (int i = bits; i-- > 0;) got = got << 1 | (uint32_t)coder.bit(value >> i & 1, 32768);
  return got;
}

// |value| - 1 in unary, then by Exp-Golomb.
template <class Coder>
int64_t magnitude(Coder& coder, Chosen& c, int64_t value, int first) {
  int64_t got = 0;
  while (got < UNARY) {
    if (!c.code(coder, value > got, first + (int)got, K_SIZE)) return got;
    got++;
  }
  const uint64_t rest = (uint64_t)(value - UNARY) + 1;  // from 1 on
  int length = 0;
  while (c.code(coder, (rest >> (length + 1)) != 0, ESCAPE + length, K_SIZE))
    if (++length == PREFIX) throw std::overflow_error("a number is beyond all bounds");
  return UNARY + (int64_t)((uint64_t(1) << length) + raw(coder, (uint32_t)(rest & ((uint64_t(1) << length) - 1)), length)) - 1;
}

// One number, `shift` of whose bits lie below what the contexts see; returns it, and what later ones see of it.
template <class Coder>
int64_t number(Coder& coder, Chosen& c, int64_t value, int shift, bool sign, int64_t& seen) {
  const int low = shift > 0 ? shift : 0;
  const int64_t half = low ? int64_t(1) << (low - 1) : 0, coarse = (value + half) >> low;
  int64_t got = 0;
  if (!c.code(coder, coarse == 0, ZERO, K_ZERO)) {
    const bool negative = sign && c.code(coder, coarse < 0, SIGN, K_SIGN);
    const int64_t size = 1 + magnitude(coder, c, std::abs(coarse) - 1, negative ? DOWN : UP);
    got = negative ? -size : size;
  }
  seen = shift < 0 ? got * (int64_t(1) << -shift) : got;
  if (!low) return got;
  const uint32_t rest = (uint32_t)(value + half - coarse * (int64_t(1) << low));
  const int side = (int)std::min<int64_t>(std::max<int64_t>(got, -(LOWS / 2)), LOWS / 2) + LOWS / 2;
  const int first = c.code(coder, rest >> (low - 1) & 1, LOW1 + side, K_LOW);
  int64_t bits = first;
  if (low > 1) {
    bits = bits << 1 | c.code(coder, rest >> (low - 2) & 1, LOW2 + first, K_LOW);
    bits = bits << (low - 2) | raw(coder, rest & ((1u << (low - 2)) - 1), low - 2);
  }
  return got * (int64_t(1) << low) + bits - half;
}

void require(bool fine, const char* what) {
  if (!fine) throw std::invalid_argument(what);
}

struct Call {
  int64_t n;
  int columns;
  const int32_t *contexts, *shift, *previous;
  std::vector<int32_t> sizes, reach;  // contexts of a column, and the buckets on each side of 0 of its previous number
};

// contexts and previous [n,columns]; previous -1: none; reach 0: the column looks at no previous number.
Call check(const std::vector<int32_t>& sizes, const std::vector<int32_t>& reach, const Input& contexts,
           const Input& previous, const MaybeInput& shift, int64_t n) {
  Call call{n, (int)sizes.size(), contexts.data(), shift ? shift->data() : nullptr, previous.data(), sizes, reach};
  require(call.columns >= 1 && call.columns <= MAX_COLUMNS && reach.size() == sizes.size(), "columns: expected 1 to 8");
  for (const Input* a : {&contexts, &previous})
    require(a->ndim() == 2 && (int64_t)a->shape(0) == n && (int)a->shape(1) == call.columns, "contexts: expected [n,columns]");
  require(!shift || (shift->ndim() == 1 && (int64_t)shift->shape(0) == n), "shift: expected [n]");
  for (int m = 0; m < call.columns; m++)
    require(sizes[m] >= 1 && sizes[m] <= 65536 && reach[m] >= 0 && reach[m] <= 64, "columns: a size is out of range");
  for (int64_t i = 0; i < n; i++) {
    require(!shift || (call.shift[i] >= -16 && call.shift[i] <= 16), "shift: expected numbers in [-16, 16]");
    for (int m = 0; m < call.columns; m++) {
      const int32_t id = call.contexts[i * call.columns + m], prev = call.previous[i * call.columns + m];
      require(id >= 0 && id < sizes[m], "contexts: a number is out of range");
      require(prev >= -1 && prev < i, "previous: expected numbers of earlier rows, or -1");
    }
  }
  return call;
}

template <class Coder>
void code_integers(Coder& coder, Models& models, int key, const Call& call, bool sign, const int32_t* values, int32_t* out) {
  std::vector<int32_t> rows(call.columns);
  for (int m = 0; m < call.columns; m++) rows[m] = call.sizes[m] * (call.reach[m] ? 2 * call.reach[m] + 2 : 1);
  Bank& bank = models.bank(key, rows);
  std::vector<int32_t> seen(call.n);
  Chosen c;
  c.columns = call.columns, c.weights = bank.weights.data();
  for (int64_t i = 0; i < call.n; i++) {
    for (int m = 0; m < call.columns; m++) {
      int64_t id = call.contexts[i * call.columns + m];
      if (const int32_t reach = call.reach[m]) {
        const int32_t prev = call.previous[i * call.columns + m];
        id = id * (2 * reach + 2) + (prev < 0 ? 0 : 1 + reach + std::min(std::max(seen[prev], -reach), reach));
      }
      c.row[m] = bank.bits[m].data() + id * BINS;
    }
    int64_t visible = 0;
    const int64_t got = number(coder, c, values ? values[i] : 0, call.shift ? call.shift[i] : 0, sign, visible);
    if (got < INT32_MIN || got > INT32_MAX) throw std::overflow_error("a number is beyond 32 bits");
    seen[i] = (int32_t)std::min<int64_t>(std::max<int64_t>(visible, -64), 64);
    if (out) out[i] = (int32_t)got;
  }
}

template <class Coder>
void code_uniform(Coder& coder, const Input& counts, const int32_t* values, int32_t* out) {
  const int32_t* n = counts.data();
  for (size_t i = 0; i < counts.size(); i++) {
    require(n[i] >= 1 && n[i] <= 65536, "counts: expected numbers in [1, 65536]");
    require(!values || (values[i] >= 0 && values[i] < n[i]), "values: expected numbers below their counts");
    const uint32_t got = n[i] > 1 ? coder.uniform(values ? (uint32_t)values[i] : 0, (uint32_t)n[i]) : 0;
    if (out) out[i] = (int32_t)got;
  }
}

struct Reader {  // a decoder that owns its bytes
  std::vector<uint8_t> bytes;
  Decoder coder;
  explicit Reader(nb::bytes b)
      : bytes((const uint8_t*)b.c_str(), (const uint8_t*)b.c_str() + b.size()), coder(bytes.data(), bytes.size()) {}
};

// CRC-32C (Castagnoli), reflected: polynomial 0x1EDC6F41.
uint32_t crc32c(const uint8_t* data, size_t size) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> t(256);
    for (uint32_t i = 0; i < 256; i++) {
      t[i] = i;
      for (int k = 0; k < 8; k++) t[i] = t[i] & 1 ? t[i] >> 1 ^ 0x82F63B78u : t[i] >> 1;
    }
    return t;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
  return ~crc;
}

}  // namespace

void bind_entropy(nb::module_& m) {
  using Sizes = const std::vector<int32_t>&;
  m.def("crc32c", [](nb::bytes data) { return crc32c((const uint8_t*)data.c_str(), data.size()); });
  nb::class_<Models>(m, "EntropyModels").def(nb::init<>());
  nb::class_<Encoder>(m, "EntropyEncoder")
      .def(nb::init<>())
      .def("integers", [](Encoder& self, Models& models, int bank, Sizes sizes, Sizes reach, const Input& contexts,
                          const Input& previous, const MaybeInput& shift, bool sign, const Input& values) {
        const Call call = check(sizes, reach, contexts, previous, shift, (int64_t)values.size());
        for (int64_t i = 0; i < call.n && !sign; i++) require(values.data()[i] >= 0, "values: expected none below 0");
        code_integers(self, models, bank, call, sign, values.data(), nullptr);
      }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
      .def("uniform", [](Encoder& self, const Input& counts, const Input& values) {
        require(counts.size() == values.size(), "counts: expected one for each value");
        code_uniform(self, counts, values.data(), nullptr);
      })
      .def("finish", [](Encoder& self) {
        const std::vector<uint8_t> out = self.finish();
        return nb::bytes((const char*)out.data(), out.size());
      });
  nb::class_<Reader>(m, "EntropyDecoder")
      .def(nb::init<nb::bytes>())
      .def("integers", [](Reader& self, Models& models, int bank, Sizes sizes, Sizes reach, const Input& contexts,
                          const Input& previous, const MaybeInput& shift, bool sign, Ints out) {
        const Call call = check(sizes, reach, contexts, previous, shift, (int64_t)out.size());
        code_integers(self.coder, models, bank, call, sign, nullptr, out.data());
      }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
      .def("uniform", [](Reader& self, const Input& counts, Ints out) {
        require(counts.size() == out.size(), "counts: expected one for each value");
        code_uniform(self.coder, counts, nullptr, out.data());
      })
      // whether all of the data was read, and no byte more than its writer wrote
      .def("finished", [](Reader& self) { return self.coder.at >= self.coder.size; });
}
