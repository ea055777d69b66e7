"""Detectors, their proposals, and the paired region features that two models of different detectors share."""

from typing import TYPE_CHECKING

from vlkd.lazy import lazily

if TYPE_CHECKING:
    from vlkd.regions.average_precision import ap50, ap50_by_class
    from vlkd.regions.detectors import FasterRCNNWithAttributes, build_detector
    from vlkd.regions.extraction import detect, extract
    from vlkd.regions.fit import Fitted, fit_detector, fit_detectors
    from vlkd.regions.packaged import load_detectors, load_packaged_detectors, weights_facts
    from vlkd.regions.paired import GEOMETRY_DIM, PairedRegions, RegionRecord, Regions, geometry, pair
    from vlkd.regions.photographs import read_picture

__all__ = [
    "GEOMETRY_DIM",
    "FasterRCNNWithAttributes",
    "Fitted",
    "PairedRegions",
    "RegionRecord",
    "Regions",
    "ap50",
    "ap50_by_class",
    "build_detector",
    "detect",
    "extract",
    "fit_detector",
    "fit_detectors",
    "geometry",
    "load_detectors",
    "load_packaged_detectors",
    "pair",
    "read_picture",
    "weights_facts",
]

__getattr__ = lazily(
    __name__,
    {
        "average_precision": "ap50 ap50_by_class",
        "detectors": "FasterRCNNWithAttributes build_detector",
        "extraction": "detect extract",
        "fit": "Fitted fit_detector fit_detectors",
        "packaged": "load_detectors load_packaged_detectors weights_facts",
        "paired": "GEOMETRY_DIM PairedRegions RegionRecord Regions geometry pair",
        "photographs": "read_picture",
    },
)
