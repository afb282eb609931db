"""What skipping did to a table since training began."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SkipStats:
    """Counts for one table since training began.

    Attributes:
        num_lookups: Ids looked up in training steps, repeats included. With `mask_zero`, an id 0
            that no gradient came to is padding, and counted nowhere here. On parameter servers it
            is, in batches that have an id 0 with a gradient as well.
        num_skipped_lookups: Those whose gradient was never read, because their row was stale.
        num_deferred_lookups: Those whose gradient was held, to be applied when their row wakes.
        num_row_updates: Distinct rows looked up, summed over the steps; what plain training
            updates.
        num_skipped_row_updates: Those of them that were skipped.
        num_deferred_row_updates: Those of them that were deferred.
        num_stale_rows: Rows that are stale now.
        num_rows: Rows of the table.
        drift_threshold: The drift below which a popular row is stale, in the policy's metric; 0
            where no row is ever stale.
    """

    num_lookups: int
    num_skipped_lookups: int
    num_deferred_lookups: int
    num_row_updates: int
    num_skipped_row_updates: int
    num_deferred_row_updates: int
    num_stale_rows: int
    num_rows: int
    drift_threshold: float


def sum_stats(shards):
    """Returns the `SkipStats` of a table from those of its shards; the threshold is their mean."""
    names = [field.name for field in dataclasses.fields(SkipStats)]
    sums = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    return SkipStats(**{**sums, "drift_threshold": sums["drift_threshold"] / len(shards)})
