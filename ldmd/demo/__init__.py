"""Two managers and one domain on this machine, for real, and everything put away afterwards.

fleet.py     the folder, the certificates, the two managers
journey.py   the domain: started, moved, examined
"""
