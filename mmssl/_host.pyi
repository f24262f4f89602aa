import numpy as np
from numpy.typing import NDArray

def build_index(
    user: NDArray[np.int64], item: NDArray[np.int64], num_users: int, num_items: int
) -> tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]
]: ...
def index_of_lists(
    lists: NDArray[np.int32], rowptr: NDArray[np.int64], col: NDArray[np.int32], num_items: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]: ...
def edges_of_rows(
    rowptr: NDArray[np.int64], col: NDArray[np.int32], num_cols: int, rows: NDArray[np.int64]
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int64],
]: ...
