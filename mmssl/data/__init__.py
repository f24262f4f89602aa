"""Reading and writing of :class:`~mmssl.data.dataset.InteractionDataset` directories."""

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.lazy import DatasetReader
from mmssl.data.readers import read_dataset
from mmssl.data.writers import write_dataset

__all__ = ["DatasetReader", "InteractionDataset", "Interactions", "read_dataset", "write_dataset"]
