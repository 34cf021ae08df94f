# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The errors that name a row, its column, the fault and the mend."""


class RowError(ValueError):
    """A row that breaks the data contract. The message names the row, the column, the fault and what to do."""


class ColumnError(RowError):
    """A fault of one column, in its parts."""

    def __init__(self, column: str, fault: str, mend: str):
        super().__init__(column, fault, mend)  # all of them, or the error could not leave a worker process
        self.column, self.fault, self.mend = column, fault, mend

    def __str__(self) -> str:
        return f"column '{self.column}': {self.fault}. {self.mend}."
