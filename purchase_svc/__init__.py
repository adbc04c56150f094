"""The saga: buying, the settlement queue, and the settlement worker."""
