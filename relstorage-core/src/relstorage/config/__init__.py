"""From text to typed options: ZConfig files, URIs, and the reference page that describes them."""
