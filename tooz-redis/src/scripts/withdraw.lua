-- Takes back a wish, whether it was granted, waits, or did not arrive yet.
return give_back(true)
