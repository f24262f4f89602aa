"""Item features from texts and pictures: ``NAME_feat.npy``, one row per item.

``text_features`` and ``relation_features`` are functions of arrays; ``extract_text`` and
``extract_images`` write the file of a data set, with a mask of what is missing and a record of how
it was made.
"""

from mmssl.features.image import Extracted, ImageEncoder, extract_images
from mmssl.features.output import Output, Written
from mmssl.features.pictures import Preprocess
from mmssl.features.text import TextEncoder, extract_text
from mmssl.features.tfidf import TfidfEncoder, relation_features, text_features

__all__ = [
    "Extracted",
    "ImageEncoder",
    "Output",
    "Preprocess",
    "TextEncoder",
    "TfidfEncoder",
    "Written",
    "extract_images",
    "extract_text",
    "relation_features",
    "text_features",
]
