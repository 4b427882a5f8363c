"""The core: what a pretraining run is. ``docs/architecture.md`` has the map."""
