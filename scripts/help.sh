# Sourced by scripts whose help is the comment at their top: prints it where it is asked for.
case ${1:-} in
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
        exit
        ;;
esac
