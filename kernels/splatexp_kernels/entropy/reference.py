"""Range coding with adaptive binary models in plain integers: the definition.

A range coder holds an interval [low, low + range) of 32 bits, and cuts it in proportion to what its models
expect; `low` may carry into the bytes that were written already. Each number becomes a row of bits
(`number`); each bit has, in every column, a model of its own for the number's context: its probability p of
being 1, of 65536, and how often it was seen. The columns' p are mixed in the logistic domain, by weights that
are learned.
Source: Martin 1979 (range coding); Mahoney 2005, "Adaptive Weighing of Context Models" (the mixing).
"""

MASK, BOTTOM = 2**32 - 1, 2**24
UNARY, LOWS, PREFIX = 14, 7, 30  # bits of a magnitude in unary; contexts of a low bit; length of the rest
ZERO, SIGN, UP = 0, 1, 2  # the bits of a number: is it 0, is it below, its magnitude above 0
DOWN = UP + UNARY  # its magnitude below 0
LOW1 = DOWN + UNARY  # the first bit that contexts do not see
LOW2 = LOW1 + LOWS  # the second
ESCAPE = LOW2 + 2
BINS = ESCAPE + PREFIX
SURE = 80  # times seen after which a model is as slow as it gets
RATE = [655360 // (10 * n + 17) for n in range(SURE + 1)]
WEIGHTS = 72000  # of all columns together at first, 65536 being 1
WEIGHT_MAX = 2**20
P_MIN, P_MAX = 24, 65512
KNOTS = [  # 65536 / (1 + exp(-x)) for x from -8 to 8 by 1/2
    22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
    40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438,
    65476, 65500, 65514,
]  # fmt: skip


def _squash_table():
    """p of x / 256 for x from -2048 to 2047, between the knots along straight lines."""
    lines = (
        (KNOTS[d >> 7] * (128 - (d & 127)) + KNOTS[(d >> 7) + 1] * (d & 127) + 64) >> 7 for d in range(4096)
    )
    return list(lines)


def _stretch_table():
    """The other way, of p / 16: the least x that has it; -2047 to 2047."""
    table = []
    for d in range(1, 4096):
        table += [d - 2048] * max((SQUASH[d] >> 4) + 1 - len(table), 0)
    return table + [2047] * (4096 - len(table))


SQUASH = _squash_table()
STRETCH = _stretch_table()


def crc32c(data):
    """CRC-32C (Castagnoli) of bytes."""
    crc = MASK
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ MASK


class Models:
    def __init__(self):
        self.banks = {}

    def bank(self, key, sizes):
        """Models {(column, context): [[p, times seen]] of BINS} and weights {(kind, column)} of a bank."""
        if key not in self.banks:
            self.banks[key] = sizes, {}, {}
        if self.banks[key][0] != sizes:
            raise ValueError("bank: its columns have other sizes than before")
        return self.banks[key][1:]


class _Coder:
    """The part that both directions share: `bit` and `cut` are the encoder's or the decoder's."""

    def __init__(self, models):
        self.models, self.range = models, MASK

    def code(self, value, bin, kind):
        """One bit: what the columns expect of it, then the bit, then what they learn."""
        bits = [row.setdefault(bin, [32768, 0]) for row in self.rows]
        weights = self.weights.setdefault(kind, [WEIGHTS // len(bits)] * len(bits))
        heard = [STRETCH[p >> 4] for p, _ in bits]
        p = bits[0][0]
        if len(bits) > 1:
            dot = sum(w * x for w, x in zip(weights, heard, strict=True)) >> 16
            p = SQUASH[min(max(dot, -2047), 2047) + 2048]
        p = min(max(p, P_MIN), P_MAX)
        value = self.bit(value, p)
        if len(bits) > 1:
            error = 65536 * value - p
            for m, x in enumerate(heard):
                weights[m] = min(max(weights[m] + (x * error >> 14), -WEIGHT_MAX), WEIGHT_MAX)
        for b in bits:
            b[0] += ((65535 * value - b[0]) * RATE[b[1]]) >> 16
            b[1] = min(b[1] + 1, SURE)
        return value

    def raw(self, value, bits):
        """So many bits that no model expects anything of, the highest first."""
        got = 0
        for i in reversed(range(bits)):
            got = got << 1 | self.bit(value >> i & 1, 32768)
        return got

    def magnitude(self, value, first):
        """A number from 0 on: up to UNARY in unary, the rest by Exp-Golomb."""
        for got in range(UNARY):
            if not self.code(int(value > got), first + got, "size"):
                return got
        rest = value - UNARY + 1
        length = 0
        while self.code(int(rest >= 2 << length), ESCAPE + length, "size"):
            length += 1
            if length == PREFIX:
                raise OverflowError("a number is beyond all bounds")
        return UNARY - 1 + (1 << length) + self.raw(rest - (1 << length) if rest > 0 else 0, length)

    def number(self, value, shift, sign):
        """A number, and what later contexts see of it."""
        low = max(shift, 0)
        half = 1 << low >> 1
        coarse = (value + half) >> low
        got = 0
        if not self.code(int(coarse == 0), ZERO, "zero"):
            below = bool(sign and self.code(int(coarse < 0), SIGN, "sign"))
            got = 1 + self.magnitude(abs(coarse) - 1, DOWN if below else UP)
            got = -got if below else got
        seen = got << max(-shift, 0)
        if not low:
            return got, seen
        rest = value + half - (coarse << low)
        side = min(max(got, -(LOWS // 2)), LOWS // 2) + LOWS // 2
        bits = self.code(rest >> (low - 1) & 1, LOW1 + side, "low")
        if low > 1:
            bits = bits << 1 | self.code(rest >> (low - 2) & 1, LOW2 + bits, "low")
            bits = bits << (low - 2) | self.raw(rest & ((1 << (low - 2)) - 1), low - 2)
        return (got << low) + bits - half, seen

    def integers(self, bank, sizes, reach, contexts, previous, shift, sign, values):
        """Numbers [n]; `values` are those to write, or how many to read."""
        rows = [size * (2 * r + 2 if r else 1) for size, r in zip(sizes, reach, strict=True)]
        models, self.weights = self.models.bank(bank, rows)
        given = [0] * values if isinstance(values, int) else values.tolist()
        contexts, previous = contexts.tolist(), previous.tolist()
        shifts = [0] * len(given) if shift is None else shift.tolist()
        out, seen = [], []
        for i, value in enumerate(given):
            self.rows = []
            for m, r in enumerate(reach):
                id, before = contexts[i][m], previous[i][m]
                if r:
                    id = id * (2 * r + 2) + (0 if before < 0 else 1 + r + min(max(seen[before], -r), r))
                self.rows.append(models.setdefault((m, id), {}))
            got, visible = self.number(value, shifts[i], sign)
            if not -(2**31) <= got < 2**31:
                raise OverflowError("a number is beyond 32 bits")
            out.append(got), seen.append(visible)
        return out

    def uniform(self, counts, values=None):
        """Numbers below their counts, all as likely."""
        given = [0] * len(counts) if values is None else values.tolist()
        pairs = zip(given, counts.tolist(), strict=True)
        return [self.cut(value, n) if n > 1 else 0 for value, n in pairs]

    def narrow(self, value, n):
        """The part of the range that the value has of n equal ones; the last has what remains, too."""
        part = self.range // n
        self.range = self.range - part * (n - 1) if value == n - 1 else part


class Encoder(_Coder):
    def __init__(self, models):
        super().__init__(models)
        self.low, self.out = 0, []

    def bit(self, value, p):
        one = self.range * p >> 16
        self.low += 0 if value else one
        self.range = one if value else self.range - one
        self.shift()
        return value

    def cut(self, value, n):
        self.low += self.range // n * value
        self.narrow(value, n)
        self.shift()
        return value

    def carry(self):
        if self.low > MASK:
            self.low &= MASK
            i = len(self.out) - 1
            while self.out[i] == 255:
                self.out[i] = 0
                i -= 1
            self.out[i] += 1

    def shift(self):
        self.carry()
        while self.range < BOTTOM:
            self.out.append(self.low >> 24)
            self.low, self.range = self.low << 8 & MASK, self.range << 8

    def finish(self):
        """The fewest bytes that name a number in the last interval; what follows them is read as zeros."""
        for count in range(5):
            unit = 1 << (32 - 8 * count)
            end = -(-self.low // unit) * unit
            if end < self.low + self.range:
                self.low = end
                self.carry()
                return bytes(self.out) + (self.low >> (32 - 8 * count)).to_bytes(count, "big")
        raise AssertionError("an interval holds a number of 32 bits")


class Decoder(_Coder):
    def __init__(self, models, data):
        super().__init__(models)
        self.data, self.at, self.low = data, 0, 0
        for _ in range(4):
            self.next()
        if self.low == MASK:
            raise OverflowError("a range coder cannot have written this beginning")

    def next(self):
        """The next byte; four behind the end are zeros, which the encoder left out."""
        if self.at >= len(self.data) + 4:
            raise OverflowError("the numbers go on behind the end of the data")
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.at, self.low = self.at + 1, (self.low << 8 & MASK) | byte

    def bit(self, _, p):
        one = self.range * p >> 16
        value = int(self.low < one)
        self.low -= 0 if value else one
        self.range = one if value else self.range - one
        self.shift()
        return value

    def cut(self, _, n):
        value = min(self.low // (self.range // n), n - 1)
        self.low -= self.range // n * value
        self.narrow(value, n)
        self.shift()
        return value

    def shift(self):
        while self.range < BOTTOM:
            self.next()
            self.range <<= 8

    def finished(self):
        return self.at >= len(self.data)
