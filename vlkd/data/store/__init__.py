"""The feature store: region records in memory-mapped Arrow files, read by picture key, verified on the way in and out."""

from vlkd.data.store.batch import RegionBatch
from vlkd.data.store.layout import FeatureType, Role, View
from vlkd.data.store.memory import RegionMemory
from vlkd.data.store.read import RegionSource, RegionStore
from vlkd.data.store.write import (
    Seen,
    check_half,
    extend_store,
    finish_store,
    part_name,
    read_records,
    remove_strays,
    unfinished_folder,
    write_part,
    write_store,
)

__all__ = [
    "FeatureType",
    "RegionBatch",
    "RegionMemory",
    "RegionSource",
    "RegionStore",
    "Role",
    "Seen",
    "View",
    "check_half",
    "extend_store",
    "finish_store",
    "part_name",
    "read_records",
    "remove_strays",
    "unfinished_folder",
    "write_part",
    "write_store",
]
