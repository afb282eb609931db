"""The step of tables that one device trains: nothing travels."""


class OneDevice:
    """What a strategy does beside the arithmetic; the others have the same methods."""

    def exchange(self, states, slices, settings, are_summed):
        """Turns the lookups of this replica into those of all.

        Args:
            states: `TableState`s.
            slices: `tf.IndexedSlices`, one per table.
            settings: `StepSettings`.
            are_summed: Whether the caller has summed gradients over replicas already.

        Returns:
            `slices`, and `num_lookups` for `apply_rows`.
        """
        return slices, None

    def sum_dense(self, dense, are_summed):
        """Returns pairs of gradients and variables summed over replicas, and whether they are."""
        return dense, are_summed

    def exchange_held(self, states):
        """Brings what replicas hold of rows that sleep into every pool."""

    def run(self, function):
        """Runs what is to happen on every replica, eagerly."""
        function()
