"""The stand-ins for services are there for every test of trackers."""

from __future__ import annotations

from stand_ins import service as service
