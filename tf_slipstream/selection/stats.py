"""What was read and what was kept."""

import dataclasses

# A row's popularity: below each of these numbers of batches that had it so far, and at or above.
POPULARITY_BOUNDS = (10, 100, 1000)


@dataclasses.dataclass(frozen=True)
class SelectionStats:
    """Counts since training began.

    Attributes:
        num_inputs: Inputs read.
        num_kept: Inputs kept, those still waiting for their batch too.
        num_inputs_by_label: `(of label 0, of label 1)`.
        num_kept_by_label: The same of those kept.
        num_lookups_by_popularity: Per field a tuple of lookups, by how many batches had had their
            row before: fewer than 10, 100, 1000, and more. Of every 8th batch; empty without pilot.
        num_kept_lookups_by_popularity: The same of inputs kept.
        log_c: Logarithm of the `c` in `min(1, c |label - p|)`.
    """

    num_inputs: int
    num_kept: int
    num_inputs_by_label: tuple
    num_kept_by_label: tuple
    num_lookups_by_popularity: dict
    num_kept_lookups_by_popularity: dict
    log_c: float

    @property
    def share_kept(self):
        """Share of the inputs read that were kept; 0 before the first."""
        return self.num_kept / max(self.num_inputs, 1)
