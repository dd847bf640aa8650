"""Makes destinations of their settings."""

from __future__ import annotations

from collections.abc import Mapping

from node.delivery.dimse import CommittingDimseAdapter, DimseAdapter
from node.delivery.folder import FolderAdapter
from node.delivery.port import Destination
from node.delivery.stow import StowAdapter
from node.peers import Peer
from node.settings import DimseDestination, FolderDestination, StowDestination

__all__ = ["make_destination"]


def make_destination(
    name: str,
    settings: DimseDestination | StowDestination | FolderDestination,
    peers: Mapping[str, Peer],
    calling_ae_title: str,
) -> Destination:
    """Return the destination that a section of the configuration describes.

    Parameters
    ----------
    name
        The section's key.
    settings
        The section.
    peers
        Those that it may name.
    calling_ae_title
        By which the node calls peers over DIMSE.
    """
    match settings:
        case DimseDestination():
            peer = peers[settings.peer]
            if settings.commit:
                return CommittingDimseAdapter(name, peer, calling_ae_title, settings.commit_seconds)
            return DimseAdapter(name, peer, calling_ae_title)
        case StowDestination():
            return StowAdapter(name, settings)
        case FolderDestination():
            return FolderAdapter(name, settings)
