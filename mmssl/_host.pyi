import numpy as np
from numpy.typing import NDArray

def build_index(
    user: NDArray[np.int64], item: NDArray[np.int64], num_users: int, num_items: int
) -> tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]
]: ...
