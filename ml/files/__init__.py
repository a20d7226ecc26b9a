"""What files say about themselves: the rules that the web application, which reads headers only,
and the workers, which read the files, share. They need the standard library only.
"""
