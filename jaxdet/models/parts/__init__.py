"""Parts that follow suppression: each takes the detections and gives them back with more known about them."""
