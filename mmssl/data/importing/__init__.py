"""Import of data in other layouts into a directory of this package.

``sources.py`` opens files, ``text.py``, ``lines.py``, ``arrow.py``, ``jsonl.py`` and ``lists.py``
read tables, ``roles.py`` finds the columns, ``cells.py``, ``times.py`` and ``rows.py`` check every
cell, ``assemble.py`` numbers the users and items, ``given.py`` handles splits of the source.
``logs.py``, ``matrices.py``, ``mmssl.py``, ``mmrec.py`` and ``recbole.py`` each read one layout;
``layouts.py`` finds out which, and ``importer.py`` writes the directory.
"""

from mmssl.data.importing.importer import ImportReport, import_data
from mmssl.data.importing.options import ImportOptions
from mmssl.data.importing.text import Dialect

__all__ = ["Dialect", "ImportOptions", "ImportReport", "import_data"]
