"""An asyncio autograding service that speaks Tango's REST API and loses no job."""

__version__ = "0.1.0"
