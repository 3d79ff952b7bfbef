"""The client's half of a farm: sessions on servers, lanes, and the tasks on them."""
