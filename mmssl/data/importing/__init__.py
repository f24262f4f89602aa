"""From the files people have to a directory of this package: one file per layout.

``text.py`` and ``arrow.py`` read tables, ``roles.py`` finds the columns, ``rows.py`` checks every
cell, ``assemble.py`` numbers what is left; ``logs.py``, ``mmssl.py``, ``mmrec.py`` and
``recbole.py`` each know one layout; ``importer.py`` picks one and writes the directory.
"""

from mmssl.data.importing.importer import ImportReport, import_data
from mmssl.data.importing.options import ImportOptions
from mmssl.data.importing.text import Dialect

__all__ = ["Dialect", "ImportOptions", "ImportReport", "import_data"]
