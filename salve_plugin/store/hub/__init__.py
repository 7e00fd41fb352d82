"""Files of one commit of a Hub repository: pulled pinned and checked, pushed in one commit."""
