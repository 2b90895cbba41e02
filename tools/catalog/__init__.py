"""Scripts that write the CSV files of `infra/catalog`; nothing in `infra` imports them."""
