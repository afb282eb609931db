"""What a vocabulary does, with dictionaries; shares no code with the product."""

import fractions


class DictionaryVocabulary:
    """A `DynamicVocabulary` of one row for unknown ids that counts all ids exactly.

    Args:
        capacity: Rows.
        admit_after: As the layer's.
        forget_after: As the layer's.
        padding: The id that is padding, or None.
    """

    def __init__(self, capacity, admit_after=1, forget_after=None, padding=-1):
        self.capacity, self.admit_after = capacity, admit_after
        self.forget_after, self.padding = forget_after, padding
        self.oov = 0 if padding is None else 1
        self.row_of, self.seen, self.counts, self.num_steps = {}, {}, {}, {}
        self.free, self.next_row, self.step, self.hand = [], self.oov + 1, 0, self.oov + 1
        self.taken_back = []

    def look_up(self, ids):
        """Returns rows, as in inference."""
        return [0 if one == self.padding else self.row_of.get(one, self.oov) for one in ids]

    def train(self, ids):
        """Returns rows, as in a training step; `taken_back` is what it took back."""
        self.step, self.taken_back = self.step + 1, []
        known = [one for one in ids if one in self.row_of and one != self.padding]
        for one in set(known):
            self._see(one)
        self._forget()
        was_known = set(known)
        return [self._row_of(one, one in was_known) for one in ids]

    def _row_of(self, one, was_known):
        if one == self.padding:
            return 0
        if not was_known and one not in self.row_of:
            self.counts[one] = self.counts.get(one, 0) + 1
            if self.counts[one] < self.admit_after or not self._admit(one):
                return self.oov
        self._see(one)
        return self.row_of[one]

    def _see(self, one):
        """Counts a step that looks an id up, up to 31."""
        if self.seen.get(one) != self.step:
            self.num_steps[one] = min(31, self.num_steps.get(one, 0) + 1)
        self.seen[one] = self.step

    def _admit(self, one):
        if not self.free and self.next_row == self.capacity:
            cold = [
                (-fractions.Fraction(self.step - step, self.num_steps[i]), self.row_of[i], i)
                for i, step in self.seen.items()
                if step < self.step
            ]
            for _, _, other in sorted(cold)[: max(1, self.capacity // 128)][::-1]:
                self._take_back(other)
        if self.free:
            self.row_of[one] = self.free.pop()
        elif self.next_row < self.capacity:
            self.row_of[one], self.next_row = self.next_row, self.next_row + 1
        return one in self.row_of

    def _forget(self):
        if self.forget_after is None:
            return
        first, ids = self.oov + 1, {row: one for one, row in self.row_of.items()}
        for _ in range(-(-(self.capacity - first) // max(1, self.forget_after // 8))):
            row = self.hand
            self.hand = row + 1 if row + 1 < self.capacity else first
            if row in ids and self.step - self.seen[ids[row]] > self.forget_after:
                self._take_back(ids[row])

    def _take_back(self, one):
        row = self.row_of.pop(one)
        del self.seen[one], self.num_steps[one]
        self.free.append(row)
        self.taken_back.append(row)
