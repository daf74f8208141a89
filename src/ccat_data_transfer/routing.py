"""Names of queues: computed from a destination, never configured."""

OPERATION_TYPE = "long_term_archive_transfer"


def queue_name(site_short_name: str, location_name: str) -> str:
    """Queue of the operations that carry packages to a location: `cologne_lta_long_term_archive_transfer`."""
    return f"{site_short_name}_{location_name}_{OPERATION_TYPE}"
