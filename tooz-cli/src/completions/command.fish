
# After -- stands another command with its arguments.
function __tooz_complete_command
    set -l words (commandline -opc)
    set -l at (contains -i -- -- $words)
    or return
    set -l command $words[(math $at + 1)..]
    complete -C (string join -- ' ' (string escape -- $command) (commandline -ct))
end
complete -c tooz -n 'contains -- -- (commandline -opc)' -xa '(__tooz_complete_command)'
