"""Item features from texts and pictures: ``NAME_feat.npy``, one row per item.

``text_features`` and ``relation_features`` are functions of arrays; ``extract_text`` and
``extract_images`` write the file of a data set, with a mask of what is missing and a record of how
it was made.
"""

from mmssl.features.output import Output, Written
from mmssl.features.text import TextEncoder, extract_text
from mmssl.features.tfidf import TfidfEncoder, relation_features, text_features

__all__ = [
    "Output",
    "TextEncoder",
    "TfidfEncoder",
    "Written",
    "extract_text",
    "relation_features",
    "text_features",
]
