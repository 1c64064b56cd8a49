"""Range coding in C++ (cpp/entropy.cpp)."""

import numpy as np

from splatexp_kernels import _cpu  # type: ignore[attr-defined]

Models = _cpu.EntropyModels
crc32c = _cpu.crc32c


class Encoder:
    def __init__(self, models):
        self.models, self.coder = models, _cpu.EntropyEncoder()

    def integers(self, bank, sizes, reach, contexts, previous, shift, sign, values):
        self.coder.integers(self.models, bank, sizes, reach, contexts, previous, shift, sign, values)

    def uniform(self, counts, values):
        self.coder.uniform(counts, values)

    def finish(self):
        return self.coder.finish()


class Decoder:
    def __init__(self, models, data):
        self.models, self.coder = models, _cpu.EntropyDecoder(data)

    def integers(self, bank, sizes, reach, contexts, previous, shift, sign, n):
        out = np.empty(n, np.int32)
        self.coder.integers(self.models, bank, sizes, reach, contexts, previous, shift, sign, out)
        return out

    def uniform(self, counts):
        out = np.empty(len(counts), np.int32)
        self.coder.uniform(counts, out)
        return out

    def finished(self):
        return self.coder.finished()
