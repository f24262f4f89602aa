"""Import of data in other layouts into a directory of this package.

``text.py``, ``lines.py`` and ``arrow.py`` read tables, ``roles.py`` finds the columns, ``rows.py``
checks every cell, ``assemble.py`` numbers the users and items; ``logs.py``, ``mmssl.py``,
``mmrec.py`` and ``recbole.py`` each read one layout; ``importer.py`` picks one of them and writes
the directory.
"""

from mmssl.data.importing.importer import ImportReport, import_data
from mmssl.data.importing.options import ImportOptions
from mmssl.data.importing.text import Dialect

__all__ = ["Dialect", "ImportOptions", "ImportReport", "import_data"]
